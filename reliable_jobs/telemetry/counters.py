"""What a worker has done, counted for Prometheus. Import it where it is to be counted only: the counters are made then,
and prometheus-client decides then whether a pool's children add up.

A count reaches the metrics within a second (:mod:`~reliable_jobs.telemetry.tally`). A process that is killed loses
those of its last second.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from typing import Any

from celery.signals import worker_process_shutdown
from prometheus_client import Counter, Histogram

from reliable_jobs import signals
from reliable_jobs.telemetry.tally import BUCKETS, add, carry_over

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


def connect() -> None:
    """Count from now on, in this process and in its children."""
    for signal, counter in _COUNTERS.items():
        signals.count(signal, counter)
    # A pool's child ends without atexit.
    worker_process_shutdown.connect(carry_over, dispatch_uid="reliable_jobs.telemetry.counters")
    atexit.register(carry_over)


def disconnect() -> None:
    """Count no more; what is pending is carried over."""
    for signal in _COUNTERS:
        signals.count(signal, None)
    worker_process_shutdown.disconnect(dispatch_uid="reliable_jobs.telemetry.counters")
    atexit.unregister(carry_over)
    carry_over()


def _count(counter: Counter) -> Callable[[Mapping[str, Any]], None]:
    def count(said: Mapping[str, Any]) -> None:
        add(counter, said["task"], said["queue"])

    return count


def _started(said: Mapping[str, Any]) -> None:
    add(STARTED, said["task"], said["queue"], observed=(WAIT, max(0.0, said["wait"])))


def _settled(said: Mapping[str, Any]) -> None:
    seconds = said["seconds"]
    observed = None if seconds is None else (RUN, seconds)
    add(SETTLED, said["task"], said["queue"], said["status"], observed=observed)


_COUNTERS = {
    signals.job_enqueued: _count(ENQUEUED),
    signals.job_published: _count(PUBLISHED),
    signals.job_started: _started,
    signals.job_settled: _settled,
    signals.job_rescued: _count(RESCUED),
    signals.job_parked: _count(PARKED),
}
