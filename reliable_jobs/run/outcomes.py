"""The ends of a task function that are no plain success: each a settlement to write and an answer for Celery's tracer.

Each builder below takes one kind of ending. Nothing is written here: ``Outcome.settle`` is called inside the
transaction that is to hold the settlement. Runs that were broken off are recovery.py's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from typing import TYPE_CHECKING

from celery.exceptions import Ignore, Reject, Retry
from django.db import Error as DatabaseError
from django.db import transaction

from reliable_jobs import lifecycle
from reliable_jobs.conf import settings
from reliable_jobs.errors import (
    BrokenTransaction,
    FunctionExited,
    FunctionOutOfMemory,
    JobExpired,
    JobParked,
    ShownFailure,
)
from reliable_jobs.lifecycle import Claim, db_errors
from reliable_jobs.lifecycle.delays import handback_delay
from reliable_jobs.logs import job_logger
from reliable_jobs.message import exception_text, result_text
from reliable_jobs.run import settling
from reliable_jobs.run.round_trips import is_cut_off
from reliable_jobs.run.state import Again, Interrupted, Outcome, Run
from reliable_jobs.status import EventKind, Reason, Status

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask

logger = job_logger(__name__)

#: Exit codes with which billiard ends a child on a signal: -(256 - signum).
_SIGNAL_EXITS = range(-256, -190)


def from_exception(task: RunnableTask, run: Run, error: BaseException) -> Outcome:
    """The task function raised, and its savepoint is undone.

    Raises:
        Interrupted: the database is to blame.
        BaseException: what ends the process is passed on.
    """
    if is_cut_off(run) and not ends_process(error):
        return closed_its_connection(task, run, error)
    ended = _from_exception(task, run, error)
    ended.raised = error
    return with_rollback_calls(run, ended)


def _from_exception(task: RunnableTask, run: Run, error: BaseException) -> Outcome:
    if isinstance(error, Retry):
        cause = run.again.cause if run.again is not None else error.exc
        if task.reruns and isinstance(cause, DatabaseError) and db_errors.is_transient(cause, run.claim.using):
            raise Interrupted(str(cause)) from cause  # autoretry_for=(Exception,) would make it cost an attempt
        return again(task, run, run.again or Again(delay=_delay_of(error, task), cause=error.exc), error)
    if isinstance(error, Reject):
        if error.requeue:
            wish = Again(delay=1.0, counts=False, cause=error)
            return again(task, run, wish, Ignore(f"requeued by its task: {error}"))
        return failure(task, run, error, Reason.REJECTED)
    if ends_process(error):
        raise error
    if not isinstance(error, Exception) or isinstance(error, MemoryError):
        return failure(task, run, _as_failure(error))
    if task.reruns and isinstance(error, DatabaseError) and db_errors.is_transient(error, run.claim.using):
        raise Interrupted(str(error)) from error
    if run.again is not None and run.again.counts:
        # retry(throw=False), and then this: what is recorded is why the function ended.
        wish = dataclasses.replace(run.again, cause=error)
        return again(task, run, wish, asked(wish, error))
    # A snooze or replace() costs no attempt; one that is followed by an error would go round for ever.
    return failure(task, run, error)


def _as_failure(error: BaseException) -> Exception:
    """An ordinary exception in place of one that would end the child process, or (MemoryError, celery #10462) the whole
    worker."""
    failed: Exception
    if isinstance(error, MemoryError):
        failed = FunctionOutOfMemory("The task function ran out of memory (MemoryError); the worker process lives on.")
    elif isinstance(error, SystemExit):
        failed = FunctionExited(
            f"The task function called sys.exit({error.code!r}); raise an exception instead to fail a job."
        )
    elif isinstance(error, asyncio.CancelledError):
        failed = FunctionExited(
            "The task function ended with asyncio.CancelledError; catch it where the await is cancelled."
        )
    else:
        text = f"The task function raised {db_errors.describe(error)} (a BaseException; use an Exception)."
        failed = FunctionExited(text)
    failed.__cause__ = error
    return failed


def closed_its_connection(task: RunnableTask, run: Run, error: BaseException | None = None) -> Outcome:
    """The task function closed the connection on which its own transaction was open."""
    broken = BrokenTransaction(
        "The task function closed the database connection of its transaction (connection.close(), "
        "connection.connect(), close_old_connections(), or Django's request_finished signal); what it wrote is undone. "
        "Remove that call, or set atomic = False on the task."
    )
    broken.__cause__ = error
    ended = failure(task, run, broken)
    ended.raised = broken
    return with_rollback_calls(run, ended)


def with_rollback_calls(run: Run, ended: Outcome) -> Outcome:
    """The ending of a run whose writes are undone, and what on_rollback() was given, in the settlement's transaction.
    One of these calls that raises is undone alone, and logged: it must not keep the run's end from being recorded."""
    if not run.on_rollback:
        return ended

    def settle(claim: Claim) -> bool:
        if not ended.settle(claim):
            return False
        for call in run.on_rollback:
            try:
                with transaction.atomic(using=claim.using):
                    call()
            except Exception:
                logger.exception("Job %s: a call given to on_rollback() raised, and is undone.", claim.job.pk)
        return True

    return dataclasses.replace(ended, settle=settle, alone=False)


def ends_process(error: BaseException) -> bool:
    """Whether an error out of a task function is no failure of its job: the process or its greenlet has to stop."""
    if isinstance(error, SystemExit):
        return _is_shutdown(error)
    if isinstance(error, Exception):
        return False
    # The timeouts and kills of greenlet pools are BaseExceptions of their libraries.
    of_library = any(cls.__module__.split(".")[0] in ("gevent", "eventlet", "greenlet") for cls in type(error).__mro__)
    return of_library or isinstance(error, KeyboardInterrupt)


def _is_shutdown(error: SystemExit) -> bool:
    """Celery ends workers with subclasses of SystemExit, billiard its children with a code made from the signal."""
    return type(error) is not SystemExit or (isinstance(error.code, int) and error.code in _SIGNAL_EXITS)


def _delay_of(error: Retry, task: RunnableTask) -> float:
    if isinstance(error.when, (int, float)):
        return float(error.when)
    if isinstance(error.when, datetime.datetime):
        return max(0.0, (error.when - datetime.datetime.now(error.when.tzinfo)).total_seconds())
    return float(task.default_retry_delay)


def failure(task: RunnableTask, run: Run, error: Exception, reason: str = Reason.ERROR) -> Outcome:
    """Given up after the function's own error."""
    text, trace, told = as_shown(task, error)
    exception, error_class = exception_text.encode(told), db_errors.class_of(error)

    def settle(claim: Claim) -> bool:
        started = None if task.atomic else result_text.started_by(task.request)
        return lifecycle.fail(
            *(claim, run.worker, reason, text, trace), exception=exception, error_class=error_class, subtasks=started
        )

    return Outcome(settle, error=told, status=Status.FAILED)


def again(task: RunnableTask, run: Run, wish: Again, signal: BaseException) -> Outcome:
    """Back to waiting; ``signal`` is what the tracer hears: Retry or Ignore."""
    if wish.replaced_by is not None:
        return settling.replaced(task, run, wish.replaced_by, signal)
    failed = wish.cause is not None and wish.counts
    text, trace, exception, error_class = "", "", None, ""
    if wish.cause is not None:
        text, trace, told = as_shown(task, wish.cause)
        exception, error_class = exception_text.encode(told), db_errors.class_of(wish.cause)
        if told is not wish.cause and isinstance(signal, Retry):
            signal = Retry(exc=told, when=signal.when)

    def settle(claim: Claim) -> bool:
        return lifecycle.run_again(
            claim,
            run.worker,
            Reason.ERROR if failed else Reason.ASKED,
            delay=wish.delay,
            at=wish.at,
            error=text,
            traceback=trace,
            exception=exception,
            error_class=error_class,
            kind=EventKind.FAILURE if failed else None,
            failure=1 if wish.counts else 0,
            content=wish.content,
            expires=wish.expires,
        )

    return Outcome(settle, error=signal)


def asked(wish: Again, error: Exception | None = None) -> Retry:
    """What the tracer hears of a ``retry(throw=False)`` whose function has ended."""
    return Retry("retry requested", error or wish.cause, wish.delay)


def as_shown(task: RunnableTask, error: BaseException) -> tuple[str, str, BaseException]:
    """Text, traceback and exception as they may be shown: without the values of sensitive arguments, and storable."""
    text, trace = db_errors.describe(error), db_errors.trace(error)
    secrets = task.secrets(task.request.args, task.request.kwargs)
    shown_text, shown_trace = db_errors.redact(text, secrets), db_errors.redact(trace, secrets)
    storable = db_errors.clean(trace, len(trace)) == trace
    told = exception_text.encode(error) if secrets else ""  # its arguments may say more than its text
    if storable and (shown_text, shown_trace, db_errors.redact(told, secrets)) == (text, trace, told):
        return text, trace, error
    return shown_text, shown_trace, ShownFailure(db_errors.clean(shown_text, len(shown_text)))


def expired(run: Run) -> Outcome:
    text = f"Job {run.claim.job.pk} expired at {run.claim.job.expires_at} before it could start."
    return Outcome(lambda claim: lifecycle.expire(claim, run.worker), error=JobExpired(text), status=Status.EXPIRED)


def misfit(task: RunnableTask, run: Run, why: str) -> Outcome:
    """The arguments don't fit this worker's code: an old worker during a deploy, or a job left behind by one. Handed
    back with back-off, parked after DEPLOY_GRACE."""
    job, now = run.claim.job, run.claim.now
    text = f"{task.name} can't take the job's arguments: {why}"
    parked = exception_text.encode(JobParked(text))
    if job.deadline_at is not None and job.deadline_at <= now:
        return Outcome(
            lambda claim: lifecycle.fail(
                *(claim, run.worker, Reason.PARKED, text, ""),
                kind=EventKind.PARKED,
                exception=parked,
                error_class=db_errors.class_of(JobParked),
            ),
            error=JobParked(text),
            status=Status.FAILED,
        )
    elapsed = settings.DEPLOY_GRACE - (job.deadline_at - now).total_seconds() if job.deadline_at else 0.0
    return Outcome(
        lambda claim: lifecycle.run_again(
            claim,
            run.worker,
            Reason.PARKED,
            delay=handback_delay(elapsed),
            error=text,
            kind=None if job.deadline_at else EventKind.PARKED,
            park_at=datetime.timedelta(seconds=settings.DEPLOY_GRACE),
            began=False,
        ),
        error=Ignore(text),
    )
