"""What a worker says of itself: see presence/."""

from __future__ import annotations

import threading
import time
from typing import Any

from celery import bootsteps

from reliable_jobs.compat.celery_consumer import consumed_queues
from reliable_jobs.compat.celery_pool import places, pool_of
from reliable_jobs.compat.celery_worker import active_runs
from reliable_jobs.presence import Beacon, Report
from reliable_jobs.status import ProcessKind


class PresenceStep(bootsteps.StartStopStep):
    """After the pool, whose children must not inherit its connection. A warm shutdown waits for the runs after this
    step has stopped; so the worker's end is said by :func:`on_shutdown`, which comes last."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        # A worker of celery.contrib.testing lives in a thread of another process.
        if threading.current_thread() is threading.main_thread():
            name = pool_of(worker).__module__.rpartition(".")[2]
            pool = f"{name}, {places(worker.pool)}"
            worker.reliable_beacon = Beacon(
                ProcessKind.WORKER, name=str(worker.hostname), pool=pool, report=lambda: report(worker)
            )
            worker.reliable_beacon.start()

    def stop(self, worker: Any) -> None:
        """It goes on until the last run has ended."""

    def terminate(self, worker: Any) -> None:
        on_shutdown(worker)


def on_shutdown(sender: Any = None, **kwargs: Any) -> None:
    """The worker has ended. Receiver of ``worker_shutdown``."""
    beacon: Beacon | None = getattr(sender, "reliable_beacon", None)
    if beacon is not None:
        beacon.stop()


def report(worker: Any) -> Report:
    consuming = worker.reliable_watchdog.consuming
    now = time.time()
    active = [(task_id, max(0.0, now - began)) for task_id, began in active_runs()]
    return Report(consumed_queues(worker.consumer) if consuming else (), active, consuming)
