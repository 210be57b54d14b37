"""What was enqueued."""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery, current_app
from django.db import router
from kombu.serialization import dumps, loads

from reliable_jobs.message.decode import arguments
from reliable_jobs.models import Job
from reliable_jobs.testing.dispatch import in_order


@dataclasses.dataclass(frozen=True)
class EnqueuedJob:
    """A job of this test, run or not. ``args`` and ``kwargs`` are as its task would get them; ``status`` is the row's
    ("waiting", "succeeded" …)."""

    id: uuid.UUID
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    key: str | None
    #: None while it is held: it has replaced itself by other tasks.
    due_at: datetime.datetime | None
    status: str

    def __str__(self) -> str:
        parts = [*(repr(value) for value in self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        key = f", key {self.key!r}" if self.key is not None else ""
        return f"{self.task}({', '.join(parts)}) to queue {self.queue!r}{key}, {self.status}"


def enqueued_jobs(task: Any = None, *, using: str | None = None) -> list[EnqueuedJob]:
    """The jobs that are in the table, oldest first, whether they have run or not.

    Args:
        task: only those of this task (or task name).
        using: the database alias; by default the one that jobs are written to.

    Example::

        [job.args for job in enqueued_jobs(send_receipt)]
    """
    rows = in_order(Job.objects.using(using or router.db_for_write(Job)), "created_at")
    if task is not None:
        rows = rows.filter(task=_name(task))
    return [_enqueued(job) for job in rows]


def assert_enqueued(
    task: Any,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    count: int | None = None,
    queue: str | None = None,
    key: str | None = None,
    using: str | None = None,
) -> list[EnqueuedJob]:
    """Assert that a task was enqueued; return the jobs that match, oldest first.

    Args:
        task: the task, or its name.
        args, kwargs: the arguments, compared as the task's function would receive them: ``args=[1]`` matches
            ``delay(order_id=1)``. With one of the two given, the other counts as empty; with neither, any match.
        count: how many must match; at least one when omitted, 0 for "not enqueued".
        queue, key: only jobs with these.
        using: the database alias; by default the one that jobs are written to.

    Raises:
        AssertionError: the message lists what was enqueued.

    Example::

        send_receipt.delay(order.pk)
        assert_enqueued(send_receipt, args=[order.pk], count=1)
    """
    everything = enqueued_jobs(using=using)
    found = [job for job in everything if job.task == _name(task)]
    if args is not None or kwargs is not None:
        wanted = _bound(task, args or (), kwargs or {})
        found = [job for job in found if _bound(task, job.args, job.kwargs) == wanted]
    if queue is not None:
        found = [job for job in found if job.queue == queue]
    if key is not None:
        found = [job for job in found if job.key == key]
    if len(found) == count or (count is None and found):
        return found
    conditions = {"args": args, "kwargs": kwargs, "queue": queue, "key": key}
    said = ", ".join(f"{name}={value!r}" for name, value in conditions.items() if value is not None)
    wanted_count = "at least 1 job" if count is None else f"{count} job(s)"
    there = "\n".join(f"  {job}" for job in everything) or "  nothing"
    hint = (
        "\nCELERY_TASK_ALWAYS_EAGER is on: calls run at once and write no row. Switch it off for this test."
        if _app(task).conf.task_always_eager
        else ""
    )
    raise AssertionError(
        f"Expected {wanted_count} of {_name(task)}{f' with {said}' if said else ''}, found {len(found)}. "
        f"Enqueued:\n{there}{hint}"
    )


def _enqueued(job: Job) -> EnqueuedJob:
    args, kwargs = arguments(job, trusted=(job.content_type,), limit=None)  # written by the test itself
    return EnqueuedJob(job.pk, job.task, args, kwargs, job.queue, job.key, job.due_at, job.status)


def _name(task: Any) -> str:
    return task if isinstance(task, str) else str(task.name)


def _app(task: Any) -> Celery:
    return getattr(task, "app", None) or current_app


def _bound(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The call as JSON brings it over, and by parameter name where the task's signature is known."""
    content_type, encoding, data = dumps((list(args), dict(kwargs)), "json")
    plain_args, plain_kwargs = loads(data, content_type, encoding, accept=[content_type])
    if isinstance(task, str):
        task = current_app.tasks.get(task)
    if task is None:
        return plain_args, plain_kwargs
    try:
        call = inspect.signature(task.run).bind(*plain_args, **plain_kwargs)
    except TypeError:
        return plain_args, plain_kwargs
    call.apply_defaults()
    return call.arguments
