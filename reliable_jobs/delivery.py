"""deliver: from a message that Celery's tracer hands over to a run, or to nothing.

What the tracer is told: the value, the body's own exception, or Celery's Retry, Ignore and Reject. The row is the
result of record and is written before the tracer hears of anything.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from billiard.einfo import ExceptionInfo
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.states import FAILURE
from celery.utils.serialization import get_pickleable_etype, get_pickleable_exception
from django.db import Error as DatabaseError
from django.db import connections
from kombu.serialization import loads

from reliable_jobs import aftermath, execution, failures, lifecycle, receipts
from reliable_jobs.conf import settings
from reliable_jobs.errors import BodyOutOfMemory
from reliable_jobs.lifecycle import Refusal
from reliable_jobs.message import HEADER
from reliable_jobs.models import Job
from reliable_jobs.outbox import pointer_alias
from reliable_jobs.retry import crash_delay
from reliable_jobs.status import CELERY_STATES, Status

if TYPE_CHECKING:
    from reliable_jobs.task import ReliableTask

logger = logging.getLogger("reliable_jobs.delivery")
_T = TypeVar("_T")

#: How long a redelivered message waits for the row of a killed worker whose session outlives it by a moment, seconds.
REDELIVERY_PATIENCE = 5.0


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What the message says of itself."""

    job_id: uuid.UUID
    using: str
    rev: int
    careful: bool
    redelivered: bool
    #: False for a message that no outbox wrote: another language, ``send_task``, a producer not adopted yet.
    ours: bool


def read_delivery(task: ReliableTask) -> Delivery:
    request = task.request
    redelivered = bool((request.delivery_info or {}).get("redelivered"))
    pointer = request.get(HEADER)
    if not isinstance(pointer, dict):
        return Delivery(
            receipts.foreign_id(request.id), pointer_alias(None), 0, careful=True, redelivered=redelivered, ours=False
        )
    return Delivery(
        job_id=receipts.foreign_id(request.id),
        using=pointer_alias(pointer),
        rev=_number(pointer.get("rev")),
        careful=not task.atomic or redelivered or _number(pointer.get("send")) > 1,
        redelivered=redelivered,
        ours=True,
    )


def that_answers(task: ReliableTask, tracer: Callable[..., Any]) -> Callable[..., Any]:
    """Celery's tracer of a task, whose own errors are an answer too: a result backend that is away, a hook that raises
    where none may. A pool's thread or greenlet would swallow them, and the message would stay unacknowledged as long as
    the worker lives; after as many of those as it prefetches, a worker gets no more."""

    def trace(task_id: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        try:
            return tracer(task_id, args, kwargs, request)
        except Reject as asked:
            return _answer(asked)  # by a hook, as Celery lets it
        except Exception as error:
            logger.error(
                "Job %s: Celery could not go on after its run. How the job stands is in its row. Look at the result "
                "backend, and at the task's on_success, on_failure and after_return.\n%s",
                task_id,
                failures.redact(failures.trace(error), task.secrets(args, kwargs)),
            )
            # A MemoryError would end the whole worker.
            return _answer(BodyOutOfMemory("in a hook") if isinstance(error, MemoryError) else error)

    return trace


def _answer(error: Exception) -> Any:
    info = ExceptionInfo(internal=True)
    info.exception, info.type = get_pickleable_exception(error), get_pickleable_etype(type(error))
    return trace_ok_t(info, TraceInfo(FAILURE, error), 0.0, None)


def _number(value: Any) -> int:
    """What our own messages carry is an int; what a forged one carries must not raise here."""
    return value if isinstance(value, int) else -1


def deliver(task: ReliableTask, args: Any, kwargs: Any) -> Any:
    """Run one delivery of a job to its settlement and answer the tracer.

    Raises:
        celery.exceptions.Retry, Ignore, Reject: for the tracer.
        Exception: the body's own, after the failure was written.
    """
    task.request.reliable_began = time.monotonic()
    delivery = read_delivery(task)
    return held(delivery.using, f"Job {delivery.job_id}", lambda: _deliver(task, delivery, args, kwargs))


def held(using: str, what: str, attempt: Callable[[], _T]) -> _T:
    """Do what begins with a claim. While the database can't be reached before a body began, the message is neither run
    nor failed nor spun on: it is held with capped back-off, and given back to the broker after HOLD seconds.

    Raises:
        celery.exceptions.Reject: held for too long.
    """
    pause, waited = 0.25, 0.0
    connection: Any = connections[using]
    kept = connection.connection is not None
    connection.health_check_done = True  # the claim is the check
    while True:
        try:
            return attempt()
        except execution.NotStarted as reason:
            if kept:
                # It may have died since the last job, which says nothing of the database.
                kept = False
                aftermath.discard_connection(using)
                continue
            if waited >= settings.HOLD:
                raise Reject(str(reason), requeue=True) from reason
            logger.warning(
                "%s: the database %r can't be used (%s). Holding the message, next try in %.1f s.",
                what,
                using,
                reason,
                pause,
            )
            aftermath.discard_connection(using)
            try:
                time.sleep(pause)
            except SoftTimeLimitExceeded:
                # Meant for a body, and none has begun. With the message comes another limit.
                raise Reject(f"held past the soft time limit: {reason}", requeue=True) from reason
            waited += pause
            pause = min(pause * 2, 15.0)


def _deliver(task: ReliableTask, delivery: Delivery, args: Any, kwargs: Any) -> Any:
    if not delivery.ours:
        _ensure_receipt(task, delivery)
    call = (task, delivery.job_id, delivery.rev, delivery.using, args, kwargs)
    careful = delivery.careful
    patience = time.monotonic() + (REDELIVERY_PATIENCE if delivery.redelivered else 0.0)
    while True:
        answer = execution.run_carefully(*call) if careful else execution.run_first(*call)
        if answer is Refusal.SUSPECT:
            careful = True
        elif not isinstance(answer, Refusal):
            if answer.error is not None:
                raise answer.error
            return answer.value
        elif answer is not Refusal.LOCKED or time.monotonic() >= patience:
            _refused(task, delivery, answer)
        else:
            time.sleep(0.1)


def _ensure_receipt(task: ReliableTask, delivery: Delivery) -> None:
    try:
        receipts.ensure(task, delivery.job_id, delivery.using)
    except DatabaseError as error:
        if failures.prevents_start(error):
            raise execution.NotStarted(str(error)) from error
        raise


def _refused(task: ReliableTask, delivery: Delivery, why: Refusal) -> NoReturn:
    """A delivery that gets no claim runs nothing and fires nothing."""
    if why is Refusal.FINAL:
        _align_backend(task, delivery)
    elif why is Refusal.MISSING:
        logger.warning(
            "Job %s has no row any more (pruned, or its transaction was undone); message dropped.", delivery.job_id
        )
    elif why is Refusal.ALONE:
        lifecycle.step_back(delivery.job_id, delivery.using, crash_delay(2))
    raise Ignore(f"job {delivery.job_id}: {why.value}")


def _align_backend(task: ReliableTask, delivery: Delivery) -> None:
    """Bring the result backend in line with the settled row: a worker may have died between commit and store."""
    job = lifecycle.find(delivery.job_id, delivery.using)
    if job is None or task.request.ignore_result or task.ignore_result:
        return
    try:
        task.backend.store_result(task.request.id, result_of(job), CELERY_STATES[job.status], request=task.request)
    except Exception as error:  # a backend may raise anything; the row stays right
        logger.warning("Job %s: the result backend could not be brought in line: %s", job.pk, error)


def result_of(job: Job) -> Any:
    """The settled row's result as Celery knows it: the value, or an exception made from the recorded error."""
    if job.status == Status.SUCCEEDED:
        return (
            None if job.result is None else loads(job.result, "application/json", "utf-8", accept=["application/json"])
        )
    return RuntimeError(job.error or job.status)
