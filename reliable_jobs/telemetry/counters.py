"""What a worker has done, counted for Prometheus by receivers of our signals. Import it where it is to be counted only:
the counters are made then, and prometheus-client decides then whether a pool's children add up."""

from __future__ import annotations

import os
import threading
from typing import Any

from prometheus_client import Counter, Histogram

from reliable_jobs import signals

#: Seconds.
BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)

ENQUEUED = Counter("reliable_jobs_enqueued", "Jobs that task functions here have enqueued.", ["task", "queue"])
PUBLISHED = Counter("reliable_jobs_published", "Messages that the broker has confirmed.", ["task", "queue"])
STARTED = Counter("reliable_jobs_started", "Calls of task functions.", ["task", "queue"])
SETTLED = Counter("reliable_jobs_settled", "Jobs that have ended for good.", ["task", "queue", "status"])
RESCUED = Counter("reliable_jobs_rescued", "Jobs that were taken back from dead runs.", ["task", "queue"])
PARKED = Counter("reliable_jobs_parked", "Jobs that no worker here can run.", ["task", "queue"])
WAIT = Histogram(
    "reliable_jobs_wait_seconds", "From a job's due time to its claim.", ["task", "queue"], buckets=BUCKETS
)
RUN = Histogram(
    "reliable_jobs_run_seconds",
    "From a job's last claim to its settlement.",
    ["task", "queue"],
    buckets=BUCKETS,
)


#: Held while something is counted, and while the process forks: prometheus-client has one lock for all of its files,
#: and a child that is forked while another thread holds that (the sweeper's, beside the worker) would wait for ever.
_counting = threading.RLock()
os.register_at_fork(before=_counting.acquire, after_in_parent=_counting.release, after_in_child=_counting.release)


def connect() -> None:
    """Count from now on."""
    receivers = {
        signals.job_enqueued: _count(ENQUEUED),
        signals.job_published: _count(PUBLISHED),
        signals.job_started: _started,
        signals.job_settled: _settled,
        signals.job_rescued: _count(RESCUED),
        signals.job_parked: _count(PARKED),
    }
    for signal, receiver in receivers.items():
        signal.connect(receiver, weak=False, dispatch_uid="reliable_jobs.telemetry.counters")


def _count(counter: Counter) -> Any:
    def receive(*, task: str, queue: str, **more: Any) -> None:
        with _counting:
            counter.labels(task, queue).inc()

    return receive


def _started(*, task: str, queue: str, wait: float, **more: Any) -> None:
    with _counting:
        STARTED.labels(task, queue).inc()
        WAIT.labels(task, queue).observe(max(0.0, wait))


def _settled(*, task: str, queue: str, status: str, seconds: float | None, **more: Any) -> None:
    with _counting:
        SETTLED.labels(task, queue, status).inc()
        if seconds is not None:
            RUN.labels(task, queue).observe(seconds)
