"""The sweeper and the pruner as Celery tasks, and the task that carries a bundle of jobs.

In a beat process a tick of the sweeper does not become a message: it would wait behind every busy worker. It wakes the
sweep loop in beat itself, so that beat keeps the time and its editable row the interval. Anywhere else the task is an
ordinary one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from celery import Task, maybe_signature, shared_task
from celery.result import AsyncResult

from reliable_jobs.compat.celery_run import unwatched
from reliable_jobs.dispatch import bundles
from reliable_jobs.run import bundle
from reliable_jobs.schedule import PRUNE_TASK, SWEEP_TASK
from reliable_jobs.sweep import pruner, sweeper
from reliable_jobs.sweep.loop import SweepLoop
from reliable_jobs.task import ReliableTask
from reliable_jobs.workflow import errbacks

#: Set while this process is a beat; see worker/bootstrap.py.
beat_loop: SweepLoop | None = None


class _SweepTask(Task):
    def apply_async(self, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        if beat_loop is not None:
            beat_loop.wake()
            return AsyncResult(kwargs.get("task_id") or "reliable_jobs-sweep-in-beat", app=self.app)
        return super().apply_async(*args, **kwargs)


@shared_task(base=_SweepTask, name=SWEEP_TASK, ignore_result=True, expires=60)
def sweep() -> dict[str, int]:
    """Sweep once, here and now."""
    return dataclasses.asdict(sweeper.sweep(sweep.app, actor="sweep task"))


@shared_task(base=Task, name=PRUNE_TASK, ignore_result=True)
def prune() -> int:
    """Prune once, here and now."""
    return pruner.prune()


class _ErrbackTask(ReliableTask[..., None]):
    """Called by nobody: workflow/errbacks.py writes its jobs."""

    atomic = False
    ignore_result = True


@shared_task(base=_ErrbackTask, name=errbacks.CARRIER)
def call_errback(request: Any, exception: Any, traceback: str, errback: dict[str, Any]) -> None:
    """Call an errback that is no reliable task with the failed job's request, its exception and traceback."""
    maybe_signature(errback)(request, exception, traceback)


class _BundleTask(Task):
    """Called by nobody: its messages are made where jobs are published."""

    acks_late = True
    reject_on_worker_lost = True
    retry_on_worker_lost = False
    ignore_result = True
    Request = "reliable_jobs.worker.requests:BundleRequest"
    keeps_connections = True
    _tracer: Any = None

    @property
    def __trace__(self) -> Any:
        """What Celery calls for each message; its workers set it. Agents are to see the jobs, and not this call."""
        return self._tracer

    @__trace__.setter
    def __trace__(self, tracer: Any) -> None:
        self._tracer = unwatched(self, tracer)


@shared_task(base=_BundleTask, name=bundles.TASK, bind=True)
def run_bundle(self: Any, task: str, using: str, pointers: list[list[Any]]) -> str:
    """Run the jobs of one message."""
    return bundle.run(self, task, using, pointers)
