"""How a body ended, as a settlement to write and an answer for Celery's tracer.

Each builder below takes one kind of ending. Nothing is written here: ``Outcome.settle`` is called inside the
transaction that is to hold the settlement.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.result import ResultBase
from django.db import Error as DatabaseError
from django.db import connections, transaction

from reliable_jobs import lifecycle
from reliable_jobs.backoff import conflict_delay, conflict_window, handback_delay, interruption_delay
from reliable_jobs.compat.celery_results import is_disabled
from reliable_jobs.conf import settings
from reliable_jobs.errors import (
    BodyExited,
    BodyOutOfMemory,
    BrokenTransaction,
    InterruptionLimitExceeded,
    JobExpired,
    JobParked,
    ResultTooLarge,
    ShownFailure,
)
from reliable_jobs.lifecycle import Claim, db_errors
from reliable_jobs.message import result_text
from reliable_jobs.message.row_to_message import Rendered
from reliable_jobs.status import EventKind, Reason, Status

if TYPE_CHECKING:
    from reliable_jobs.protocols import RunnableTask

logger = logging.getLogger("reliable_jobs.execution")

#: Exit codes with which billiard ends a child on a signal: -(256 - signum).
_SIGNAL_EXITS = range(-256, -190)


@dataclasses.dataclass
class Again:
    """Run later: what ``retry()``, ``snooze()`` and ``replace()`` ask for."""

    delay: float = 0.0
    at: datetime.datetime | None = None
    counts: bool = True
    content: Rendered | None = None
    expires: datetime.datetime | None = None
    cause: BaseException | None = None


@dataclasses.dataclass
class Run:
    """One run in progress; the body reaches it through ``request.reliable_run``."""

    claim: Claim
    #: Set by retry(), snooze() and replace().
    again: Again | None = None
    open: bool = True
    #: The heartbeat found that the job belongs to another run.
    lost: bool = False
    #: How often the heartbeat failed, and how at last.
    missed_beats: int = 0
    last_miss: Exception | None = None
    #: What on_rollback() was given.
    on_rollback: list[Callable[[], Any]] = dataclasses.field(default_factory=list)
    #: Of an atomic run: the driver's connection on which its transaction is open.
    session: Any = None

    def is_cut_off(self) -> bool:
        """Whether the task function closed the connection of its transaction, or put another one in its place:
        ``connection.connect()`` resets Django's books, so that they show no transaction at all. A session that was left
        open so is closed: it holds the row's lock."""
        connection: Any = connections[self.claim.using]
        if self.session is None or connection.connection is self.session:
            return bool(connection.closed_in_transaction)
        with contextlib.suppress(Exception):
            self.session.close()
        return True


@dataclasses.dataclass
class Outcome:
    """``settle`` writes the end and says whether this run still owned the job; Celery hears ``error`` or ``value``."""

    settle: Callable[[Claim], bool]
    value: Any = None
    error: BaseException | None = None
    #: Whether the one conditional UPDATE is all that ``settle`` writes.
    alone: bool = False
    #: What the row then shows.
    status: str = Status.WAITING
    #: The task function's own exception. What it wrote is undone, whatever becomes of the transaction.
    raised: BaseException | None = None


class Interrupted(Exception):
    """The whole transaction is to be rolled back and the run put down to the database; the cause says why."""


_here = threading.local()


def worker_name(task: RunnableTask) -> str:
    """This thread of this process in the database: a fresh id for each incarnation, because host names and pids come
    back, and because a settlement by another thread is not one's own."""
    if getattr(_here, "pid", None) != os.getpid():
        _here.pid, _here.id = os.getpid(), uuid.uuid4().hex[:8]
    return f"{task.request.hostname or 'unknown'} pid {_here.pid} #{_here.id}"


def as_celery_stores(value: Any) -> Any:
    """``return other.delay()``: Celery stores the id and those of the parents."""
    return value.as_tuple() if isinstance(value, ResultBase) else value


def encode_result(task: RunnableTask, value: Any) -> str | None:
    """The return value as text for the row (see message/result_text.py); None when there is nothing to store.

    Raises:
        TypeError, ResultTooLarge: it can't be stored, and somebody wants it: a result backend, or what follows the job.
            Raised inside the savepoint, so the task function's effects are undone with it.
    """
    request = task.request
    if value is None or request.ignore_result or (task.ignore_result and "ignore_result" not in vars(request)):
        return None
    wanted = bool(request.callbacks or request.chain or request.chord) or not is_disabled(task.backend)
    try:
        text = result_text.encode(as_celery_stores(value), task.app.conf.result_serializer)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if not wanted:
            return None
        raise TypeError(
            f"{task.name} returned a {type(value).__name__} that can't be stored as "
            f"{task.app.conf.result_serializer.upper()} ({error}). Return plain data or an id, or set ignore_result = "
            "True. Its database effects were rolled back."
        ) from error
    if (size := len(text.encode())) <= settings.MAX_RESULT_BYTES:
        return text
    if not wanted:
        return None
    raise ResultTooLarge(
        f"{task.name} returned a {type(value).__name__} of {size} bytes, serialised; the limit is "
        f"{settings.MAX_RESULT_BYTES} (RELIABLE_JOBS['MAX_RESULT_BYTES']). Store it, and return its key. Its database "
        "effects were rolled back."
    )


def from_exception(task: RunnableTask, run: Run, error: BaseException) -> Outcome:
    """The task function raised, and its savepoint is undone.

    Raises:
        Interrupted: the database is to blame.
        BaseException: what ends the process is passed on.
    """
    if run.is_cut_off() and not ends_process(error):
        return with_rollback_calls(run, closed_its_connection(task, error))
    ended = _from_exception(task, run, error)
    ended.raised = error
    return with_rollback_calls(run, ended)


def _from_exception(task: RunnableTask, run: Run, error: BaseException) -> Outcome:
    if isinstance(error, Retry):
        cause = run.again.cause if run.again is not None else error.exc
        if task.reruns and isinstance(cause, DatabaseError) and db_errors.is_transient(cause, run.claim.using):
            raise Interrupted(str(cause)) from cause  # autoretry_for=(Exception,) would make it cost an attempt
        return again(task, run.again or Again(delay=_delay_of(error, task), cause=error.exc), error)
    if isinstance(error, Reject):
        if error.requeue:
            return again(task, Again(delay=1.0, counts=False, cause=error), Ignore(f"requeued by its task: {error}"))
        return failure(task, error, Reason.REJECTED)
    if ends_process(error):
        raise error
    if not isinstance(error, Exception) or isinstance(error, MemoryError):
        return failure(task, _as_failure(error))
    if task.reruns and isinstance(error, DatabaseError) and db_errors.is_transient(error, run.claim.using):
        raise Interrupted(str(error)) from error
    if run.again is not None and run.again.counts:
        # retry(throw=False), and then this: what is recorded is why the body ended.
        wish = dataclasses.replace(run.again, cause=error)
        return again(task, wish, asked(wish, error))
    # A snooze or replace() costs no attempt; one that is followed by an error would go round for ever.
    return failure(task, error)


def _as_failure(error: BaseException) -> Exception:
    """An ordinary exception in place of one that would end the child process, or (MemoryError, celery #10462) the whole
    worker."""
    failed: Exception
    if isinstance(error, MemoryError):
        failed = BodyOutOfMemory("The body ran out of memory (MemoryError); the worker process lives on.")
    elif isinstance(error, SystemExit):
        failed = BodyExited(f"The body called sys.exit({error.code!r}); raise an exception instead to fail a job.")
    elif isinstance(error, asyncio.CancelledError):
        failed = BodyExited("The body ended with asyncio.CancelledError; catch it where the await is cancelled.")
    else:
        text = f"The task function raised {db_errors.describe(error)} (a BaseException; use an Exception)."
        failed = BodyExited(text)
    failed.__cause__ = error
    return failed


def closed_its_connection(task: RunnableTask, error: BaseException | None = None) -> Outcome:
    """The task function closed the connection on which its own transaction was open."""
    broken = BrokenTransaction(
        "The task function closed the database connection of its transaction (connection.close(), "
        "connection.connect(), close_old_connections(), or Django's request_finished signal); what it wrote is undone. "
        "Remove that call, or set atomic = False on the task."
    )
    broken.__cause__ = error
    ended = failure(task, broken)
    ended.raised = broken
    return ended


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


def failure(task: RunnableTask, error: Exception, reason: str = Reason.ERROR) -> Outcome:
    """Given up after the body's own error."""
    text, trace, told = _told(task, error)
    return Outcome(
        lambda claim: lifecycle.fail(claim, worker_name(task), reason, text, trace), error=told, status=Status.FAILED
    )


def again(task: RunnableTask, wish: Again, signal: BaseException) -> Outcome:
    """Back to waiting; ``signal`` is what the tracer hears: Retry or Ignore."""
    failed = wish.cause is not None and wish.counts
    text = trace = ""
    if wish.cause is not None:
        text, trace, told = _told(task, wish.cause)
        if told is not wish.cause and isinstance(signal, Retry):
            signal = Retry(exc=told, when=signal.when)

    def settle(claim: Claim) -> bool:
        return lifecycle.run_again(
            claim,
            worker_name(task),
            Reason.ERROR if failed else Reason.ASKED,
            delay=wish.delay,
            at=wish.at,
            error=text,
            traceback=trace,
            kind=EventKind.FAILURE if failed else None,
            attempt=1 if wish.counts else 0,
            content=wish.content,
            expires=wish.expires,
        )

    return Outcome(settle, error=signal)


def asked(wish: Again, error: Exception | None = None) -> Retry:
    """What the tracer hears of a ``retry(throw=False)`` whose body has ended."""
    return Retry("retry requested", error or wish.cause, wish.delay)


def _told(task: RunnableTask, error: BaseException) -> tuple[str, str, BaseException]:
    """Text, traceback and exception as they may be shown: without the values of sensitive arguments, and storable."""
    text, trace = db_errors.describe(error), db_errors.trace(error)
    secrets = task.secrets(task.request.args, task.request.kwargs)
    shown_text, shown_trace = db_errors.redact(text, secrets), db_errors.redact(trace, secrets)
    storable = lifecycle.clean(trace, len(trace)) == trace
    if storable and (shown_text, shown_trace) == (text, trace):
        return text, trace, error
    return shown_text, shown_trace, ShownFailure(lifecycle.clean(shown_text, len(shown_text)))


def expired(task: RunnableTask, claim: Claim) -> Outcome:
    text = f"Job {claim.job.pk} expired at {claim.job.expires_at} before it could start."
    return Outcome(
        lambda claim: lifecycle.expire(claim, worker_name(task)), error=JobExpired(text), status=Status.EXPIRED
    )


def misfit(task: RunnableTask, claim: Claim, why: str) -> Outcome:
    """The arguments don't fit this worker's code: an old worker during a deploy, or a job left behind by one. Handed
    back with back-off, parked after DEPLOY_GRACE."""
    job = claim.job
    text = f"{task.name} can't take the job's arguments: {why}"
    if job.deadline_at is not None and job.deadline_at <= claim.now:
        return Outcome(
            lambda claim: lifecycle.fail(claim, worker_name(task), Reason.PARKED, text, "", kind=EventKind.PARKED),
            error=JobParked(text),
            status=Status.FAILED,
        )
    elapsed = settings.DEPLOY_GRACE - (job.deadline_at - claim.now).total_seconds() if job.deadline_at else 0.0
    return Outcome(
        lambda claim: lifecycle.run_again(
            claim,
            worker_name(task),
            Reason.PARKED,
            delay=handback_delay(int(elapsed).bit_length()),
            error=text,
            kind=None if job.deadline_at else EventKind.PARKED,
            park_at=datetime.timedelta(seconds=settings.DEPLOY_GRACE),
        ),
        error=Ignore(text),
    )


def interruption(
    task: RunnableTask, claim: Claim, cause: BaseException, signal: BaseException | None = None
) -> Outcome:
    """The database broke the run off, or the worker was told to stop at once: again, within a budget of its own.

    A conflict with another transaction has a larger budget, because under SERIALIZABLE healthy jobs meet many.
    """
    count = claim.job.interruptions + 1
    text, trace, told = _told(task, cause)
    if task.reruns and signal is None and db_errors.is_conflict(cause, claim.using):
        began = task.request.get("reliable_began", time.monotonic())
        run = max(0.0, (claim.now - claim.job.due_at).total_seconds()) + time.monotonic() - began
        window = conflict_window(settings.MAX_CONFLICTS, run)
        try:
            conflicts = lifecycle.interruptions_since(claim.job.pk, claim.using, window)
        except DatabaseError:  # away just now; the end itself is written once it is back
            conflicts = 0
        if conflicts < settings.MAX_CONFLICTS:
            return _interrupted(task, cause, text, trace, conflict_delay(conflicts), counts=False)
    if not task.reruns or count > settings.MAX_INTERRUPTIONS:
        why = f"{count} runs were interrupted (MAX_INTERRUPTIONS={settings.MAX_INTERRUPTIONS}), the last by {text}"
        if not task.reruns:
            why = f"The run was broken off and is not begun again, as acks_late is off: {text}"
        return Outcome(
            lambda claim: lifecycle.fail(
                claim, worker_name(task), Reason.INTERRUPTED, why, trace, kind=EventKind.INTERRUPTION
            ),
            error=signal or (InterruptionLimitExceeded(why) if task.reruns else told),
            status=Status.FAILED,
        )
    return _interrupted(task, cause, text, trace, interruption_delay(count - 1), signal=signal)


def _interrupted(
    task: RunnableTask,
    cause: BaseException,
    text: str,
    trace: str,
    delay: float,
    *,
    counts: bool = True,
    signal: BaseException | None = None,
) -> Outcome:
    return Outcome(
        lambda claim: lifecycle.run_again(
            claim,
            worker_name(task),
            Reason.INTERRUPTED,
            delay=delay,
            error=text,
            traceback=trace,
            kind=EventKind.INTERRUPTION,
            interruption=1 if counts else 0,
        ),
        error=signal or Retry(f"interrupted: {text}", cause if isinstance(cause, Exception) else None, delay),
    )
