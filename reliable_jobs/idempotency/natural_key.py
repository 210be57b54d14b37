"""Any function, once per natural key."""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.result import AsyncResult
from django.db import IntegrityError, transaction

from reliable_jobs.errors import InvalidOption, KeyBusy
from reliable_jobs.message.row_to_message import as_key
from reliable_jobs.status import Status
from reliable_jobs.task import stages
from reliable_jobs.task.reliable_task import ReliableTask
from reliable_jobs.task_types import P, R_co

if TYPE_CHECKING:
    from reliable_jobs.models import Job

#: Seconds until a message looks again whose key belongs to a job that has not ended.
BUSY_DELAY = 2.0
_KEY_ROUNDS = 3


class IdempotentTask(ReliableTask[P, R_co]):
    """Runs its task function once per natural key, whichever message asks and under whatever task id.

    The database effects of the function happen once; every further message with the key settles as succeeded with the
    same stored result. One that comes while the first still runs or waits is looked at again some seconds later. A
    key whose job failed, was cancelled or expired is free again. ``delay()`` and ``apply_async()`` enqueue under
    the key, so they return the job that has it.

    The task must be atomic: the key is taken in the transaction of its effects.

    Raises:
        TypeError: from a subclass with ``atomic = False``.

    Example::

        class PerOrder(IdempotentTask):
            def natural_key(self, order_id: int) -> str:
                return f"order-{order_id}"

        @reliable_task(base=PerOrder)
        def ship(order_id: int) -> None: ...

        ship.delay(7)
    """

    abstract = True

    def natural_key(self, *args: Any, **kwargs: Any) -> str | int | uuid.UUID:
        """What the work is about, as text 1 to 255 characters, unique within the task.

        Args:
            args, kwargs: the task's arguments.

        Raises:
            NotImplementedError: the task's class does not define it.
        """
        raise NotImplementedError(f"{self.name}: define natural_key() with the task's arguments.")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.atomic:
            raise TypeError(
                f"{cls.__name__}: an IdempotentTask can't have atomic = False; its key is taken in the transaction of "
                "its effects. Use apply_async(key=…), or once() around the part that writes."
            )
        run = inspect.getattr_static(cls, "run")
        if cls.run is not Task.run and not hasattr(run, "_reliable_guard"):
            # mypy takes it for a method of this class; it is that of the project's subclass.
            cls.run = _guarded(run)  # type: ignore[method-assign]

    def apply_async(self, args: Any = None, kwargs: Any = None, *positional: Any, **options: Any) -> AsyncResult[Any]:
        """As :meth:`ReliableTask.apply_async`, under the natural key.

        Raises:
            InvalidOption: another ``key`` was given.
        """
        key = self._checked_key(args or (), kwargs or {})
        if as_key(options.setdefault("key", key)) != key:
            raise InvalidOption(f"{self.name}: key={options['key']!r} is not the natural key {key!r}; leave it out.")
        options.setdefault("key_forever", True)
        return super().apply_async(args, kwargs, *positional, **options)

    def _checked_key(self, args: Any, kwargs: Any) -> str:
        given = self.natural_key(*args, **kwargs)
        key = as_key(given)
        if key is None:
            raise InvalidOption(
                f"{self.name}: natural_key() returned {given!r}; it must be a string of 1 to 255 characters without "
                "NUL, a whole number or a UUID."
            )
        return key

    def _once(self, body: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        run = self._run_in_progress()
        if run is None:
            return body()  # called directly, or eager: there is no row
        key = self._checked_key(args, kwargs)
        job, using = run.claim.job, run.claim.using
        if job.live_key == key:
            return body()
        try:
            holder = _take_key(job, key, using)
        except KeyBusy:
            raise self.snooze(BUSY_DELAY) from None
        if holder is None:
            return body()
        if holder.status == Status.SUCCEEDED:
            return stages.results.result_of(holder)
        raise self.snooze(BUSY_DELAY)


def _guarded(run: Any) -> Any:
    """The task's ``run`` behind its natural key; Celery makes a function without ``bind`` a static method."""
    function = run.__func__ if isinstance(run, staticmethod) else run

    @functools.wraps(function)
    def guarded(self: IdempotentTask, *args: Any, **kwargs: Any) -> Any:
        own = args if isinstance(run, staticmethod) else (self, *args)
        return self._once(lambda: function(*own, **kwargs), args, kwargs)

    vars(guarded)["_reliable_guard"] = True
    if isinstance(run, staticmethod):
        signature = inspect.signature(function)
        first = inspect.Parameter("_task", inspect.Parameter.POSITIONAL_ONLY)
        vars(guarded)["__signature__"] = signature.replace(parameters=[first, *signature.parameters.values()])
    return guarded


def _take_key(job: Job, key: str, using: str) -> Job | None:
    """Put the key on a running job's row, in the transaction of its function: a failure gives it back.

    Returns the job that has the key, or None when this one has it now.

    Raises:
        KeyBusy: another open transaction has it, and has not ended in some seconds.
    """
    rows = stages.models.Job.objects.using(using)
    for _ in range(_KEY_ROUNDS):
        try:
            with transaction.atomic(using=using), stages.keys.bounded_wait(using, job.task, key):
                rows.filter(pk=job.pk).update(key=key, live_key=key, key_forever=True)
            return None
        except IntegrityError:
            holder = rows.filter(task=job.task, live_key=key).first()
        if holder is None:
            continue  # its transaction was undone
        if holder.status not in (Status.FAILED, Status.CANCELLED, Status.EXPIRED):
            return holder
        # Nothing was done under the key. Its job can be requeued while no other has the key.
        rows.filter(pk=holder.pk, live_key=key).still(holder.status).update(live_key=None)
    raise KeyBusy(f"{job.task}: key {key!r} changed hands {_KEY_ROUNDS} times.")
