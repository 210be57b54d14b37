"""A task that does what a test says."""

from __future__ import annotations

import datetime
from typing import Any

from celery import shared_task
from django.utils import timezone

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

#: What the next body does with its task: set by each test.
ACT: dict[str, Any] = {}


@shared_task(base=ReliableTask, name="test_control.acts", bind=True, max_retries=3, default_retry_delay=50)
def acts(self: Any, *args: Any, **kwargs: Any) -> Any:
    Effect.objects.create(name="acts")
    return ACT["do"](self)


@shared_task(base=ReliableTask, name="test_control.outside", bind=True, atomic=False)
def acts_outside(self: Any, *args: Any) -> Any:
    return ACT["do"](self)


def run(jobs: InProcess, do: Any, *args: Any, task: Any = acts, **options: Any) -> Job:
    """Enqueue and run once a task that does this."""
    ACT["do"] = do
    result = task.apply_async(args, **options)
    jobs.last = [jobs.deliver(message) for message in jobs.take()]
    return jobs.row(result)


def wait(row: Job) -> float:
    """Seconds until it is due."""
    return (row.due_at - timezone.now()).total_seconds()


def was_delayed(row: Job, started: datetime.datetime, seconds: float) -> bool:
    """Whether a run that began then, and is over, may have made it due after so many seconds: however long it took."""
    return wait(row) <= seconds <= (row.due_at - started).total_seconds()


def do_raise(error: BaseException) -> Any:
    def do(self: Any) -> None:
        raise error

    return do
