"""Runs that were broken off: the database failed, the transaction broke, the process is being ended, a start never
reported, or the database is away while the end is to be written. What was committed is read from the row.

The job of a dead worker comes back by its message where its claim was not committed (a first run), else by ``rescue``
in lifecycle/dead_runs.py; :func:`fail_for_crashes` ends one that died too often.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

from celery.exceptions import Ignore, Retry
from django.db import Error as DatabaseError
from django.db import transaction

from reliable_jobs import databases, lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.errors import BrokenTransaction, CrashLimitExceeded, InterruptionLimitExceeded
from reliable_jobs.lifecycle import Claim, Refusal, db_errors
from reliable_jobs.lifecycle.delays import (
    CONFLICTS_PASS,
    conflict_delay,
    conflict_pause,
    conflict_window,
    interruption_delay,
)
from reliable_jobs.logs import job_logger
from reliable_jobs.message import exception_text
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.run import outcomes, pools, settling
from reliable_jobs.run.state import Interrupted, Outcome, Run
from reliable_jobs.status import EventKind, Reason, Status

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask

logger = job_logger(__name__)
_T = TypeVar("_T")

#: Why a run that was broken off is not begun again.
NO_RERUNS = "reruns is False on the task; an adopted one has that where acks_late is off"


def after_broken_transaction(task: RunnableTask, run: Run, ended: Outcome | None, error: BaseException) -> Outcome:
    """An error out of COMMIT, of a hook behind it, or of the settlement: the row says what was committed."""
    claim = run.claim

    def look_and_write() -> Outcome:
        row = Job.objects.using(claim.using).find(claim.job.pk)
        if row is None:
            raise _dropped(claim, Refusal.MISSING, error)
        if ended is not None and _is_own_settlement(run, ended, row):
            logger.warning("Job %s: an error after its commit (%r); its settlement stands.", claim.job.pk, error)
            lifecycle.of_lost_answer([claim])
            return ended
        if ended is not None and ended.raised is not None and _explains_more(ended.raised, error, claim.using):
            written = ended
        else:
            written = blame(task, run, error)
        with transaction.atomic(using=claim.using):
            if not settling.settle(task, run, written):
                raise _dropped(claim, Refusal.LOCKED, error)
        return written

    return until_written(claim, look_and_write)


def _dropped(claim: Claim, why: Refusal, error: BaseException) -> BaseException:
    """What the tracer hears where the job was taken away. A process that is to stop stops all the same."""
    return error if outcomes.ends_process(error) else Ignore(f"job {claim.job.pk}: {why.value}")


def _is_own_settlement(run: Run, ended: Outcome, row: Job) -> bool:
    """Whether the row was settled for good by this very run. A rescue and a cancel raise the epoch too, and leave this
    worker's name on the row."""
    claimed_epoch = run.claim.job.epoch + (1 if run.claim.token else 0)
    return (
        row.is_final
        and row.status == ended.status
        and row.epoch == claimed_epoch + 1
        and row.worker == run.worker
        and row.token is None
    )


def _explains_more(raised: BaseException, error: BaseException, using: str) -> bool:
    """Whether the task function's own exception is to be recorded, and not the error that broke the transaction later.

    Not if an outage made the function raise it, nor if the process is being ended.
    """
    if not isinstance(error, Exception):
        return False
    if isinstance(raised, BrokenTransaction):
        return True
    for_good = isinstance(error, DatabaseError) and not db_errors.is_transient(error, using)
    return for_good or not db_errors.stems_from_outage(raised, using)


def is_out_of_time(task: RunnableTask, error: BaseException) -> bool:
    """Whether the process is being ended by Celery's hard time limit, which sends TERM first, and not by a shutdown.

    The parent has recorded the limit as the cause; what is left is to be counted and bounded like any other kill.
    """
    limit = (task.request.timelimit or (None, None))[0] or pools.limits_of(task)[0]
    began = task.request.get("reliable_began")
    if isinstance(error, Exception) or not limit or began is None or not pools.enforces_hard_limit():
        return False
    return bool(time.monotonic() - began >= float(limit) - 0.5)


def blame(task: RunnableTask, run: Run, error: BaseException) -> Outcome:
    """The ending of a run that raised past its savepoint: its task's failure, or an interruption."""
    ended = _blame(task, run, error)
    interrupted = isinstance(ended.error, Retry) or not isinstance(ended.error, Exception)
    return ended if interrupted else outcomes.with_rollback_calls(run, ended)


def _blame(task: RunnableTask, run: Run, error: BaseException) -> Outcome:
    if isinstance(error, Interrupted):
        return interruption(task, run, error.__cause__ or error)
    if isinstance(error, DatabaseError) and db_errors.is_transient(error, run.claim.using):
        return interruption(task, run, error)
    if isinstance(error, Exception):
        return outcomes.failure(task, run, error)
    return interruption(task, run, error, error)


def interruption(task: RunnableTask, run: Run, cause: BaseException, signal: BaseException | None = None) -> Outcome:
    """The database broke the run off, or the worker was told to stop at once: again, within a budget of its own.

    A conflict with another transaction has a larger budget, because under SERIALIZABLE healthy jobs meet many.
    """
    claim = run.claim
    count = claim.job.interruptions + 1
    text, trace, told = outcomes.as_shown(task, cause)
    if task.reruns and signal is None and db_errors.is_conflict(cause, claim.using):
        began = task.request.get("reliable_began", time.monotonic())
        late = (claim.now - (claim.job.due_at or claim.now)).total_seconds()
        took = max(0.0, late) + time.monotonic() - began
        window = conflict_window(settings.MAX_CONFLICTS, took)
        try:
            conflicts = _interruptions_since(claim.job.pk, claim.using, window)
        except DatabaseError:  # away just now; the end itself is written once it is back
            conflicts = 0
        if conflicts < settings.MAX_CONFLICTS:
            return _interrupted(run, cause, told, text, trace, conflict_delay(conflicts), counts=False)
    if not task.reruns or count > settings.MAX_INTERRUPTIONS:
        why = f"{count} runs were interrupted (MAX_INTERRUPTIONS={settings.MAX_INTERRUPTIONS}), the last by {text}"
        if not task.reruns:
            why = f"The run was broken off and is not begun again ({NO_RERUNS}): {text}"
        given_up = InterruptionLimitExceeded(why) if task.reruns else told
        exception, error_class = exception_text.encode(given_up), db_errors.class_of(cause)
        return Outcome(
            lambda claim: lifecycle.fail(
                claim,
                run.worker,
                Reason.INTERRUPTED,
                why,
                trace,
                kind=EventKind.INTERRUPTION,
                exception=exception,
                error_class=error_class,
            ),
            error=signal or given_up,
            status=Status.FAILED,
        )
    return _interrupted(run, cause, told, text, trace, interruption_delay(count - 1), signal=signal)


def _interruptions_since(job_id: uuid.UUID, using: str, window: float) -> int:
    """How many interrupted runs of a job were recorded within the last ``window`` seconds."""
    events = JobEvent.objects.using(using).filter(job_id=job_id, kind=EventKind.INTERRUPTION)
    return events.filter(at__gt=Now() - datetime.timedelta(seconds=window)).count()


def _interrupted(
    run: Run,
    cause: BaseException,
    told: BaseException,
    text: str,
    trace: str,
    delay: float,
    *,
    counts: bool = True,
    signal: BaseException | None = None,
) -> Outcome:
    exception, error_class = exception_text.encode(told), db_errors.class_of(cause)
    return Outcome(
        lambda claim: lifecycle.run_again(
            claim,
            run.worker,
            Reason.INTERRUPTED,
            delay=delay,
            error=text,
            traceback=trace,
            exception=exception,
            error_class=error_class,
            kind=EventKind.INTERRUPTION,
            interruption=1 if counts else 0,
        ),
        error=signal or Retry(f"interrupted: {text}", told if isinstance(told, Exception) else None, delay),
    )


def fail_for_crashes(task: RunnableTask, run: Run) -> Outcome | Refusal:
    """Too many starts never reported: the job ends here, and Celery's failure hooks hear of it once."""
    claim = run.claim
    death = lifecycle.last_death(claim.job.pk, claim.using)
    if task.reruns:
        why = f"{claim.job.crashes - 1} starts never reported (MAX_CRASHES={settings.MAX_CRASHES})"
    else:
        why = f"its run never reported, and it is not begun again ({NO_RERUNS})"
    if death is not None:
        why += f"; last seen: {death.detail}"
    reason = Reason.TIME_LIMIT if death is not None and death.kind == EventKind.TIME_LIMIT else Reason.CRASH
    error = CrashLimitExceeded(
        f"Job {claim.job.pk}: {why}. It is not started again by itself; requeue it when the cause is fixed."
    )

    def settle() -> bool:
        with transaction.atomic(using=claim.using):
            exception = exception_text.encode(error)
            won = lifecycle.fail(
                *(claim, run.worker, reason, str(error), ""),
                kind=EventKind.CRASH,
                exception=exception,
                error_class=db_errors.class_of(error),
            )
            if won:
                settling.write_failure(task, run, error)
            return won

    ended = Outcome(lambda claim: True, error=error, status=Status.FAILED, owes=claim.job.owes)
    return ended if until_settled(run, ended, settle) else Refusal.LOCKED


def give_back(run: Run, error: BaseException) -> NoReturn:
    """Undo a committed claim whose function never began. Otherwise its lease would end and count as a crash."""
    claim = run.claim
    until_written(
        claim, lambda: lifecycle.run_again(claim, run.worker, Reason.INTERRUPTED, error=str(error), began=False)
    )
    raise Ignore(f"job {claim.job.pk} given back: {error}") from error


def until_settled(run: Run, ended: Outcome, write: Callable[[], bool]) -> bool:
    """Settle a committed claim, as :func:`until_written`. If the answer to a COMMIT was lost, a second try may find its
    fence broken by this run itself."""
    claim, tries = run.claim, 0

    def settle() -> bool:
        nonlocal tries
        tries += 1
        if write():
            return True
        row = Job.objects.using(claim.using).find(claim.job.pk) if tries > 1 else None
        if row is None or not _is_own_settlement(run, ended, row):
            return False
        lifecycle.of_lost_answer([claim])
        return True

    return until_written(claim, settle)


def until_written(claim: Claim, write: Callable[[], _T]) -> _T:
    """Do a write that reports a run, waiting out a database that is away: an unreported run would count as a crash. A
    conflict with other transactions is over at once, and may come often: pauses that grow would outlast the lease."""
    began = time.monotonic()
    pause, until = 0.1, began + settings.HOLD
    while True:
        try:
            return write()
        except DatabaseError as trouble:
            if time.monotonic() >= until or not db_errors.is_transient(trouble, claim.using):
                raise
            met = db_errors.is_conflict(trouble, claim.using)
            if met and time.monotonic() < began + CONFLICTS_PASS:
                time.sleep(conflict_pause())
                continue
            logger.warning(
                "Job %s has run, but its end can't be written yet (%s); next try in %.1f s.",
                claim.job.pk,
                trouble,
                pause,
            )
            if not met:
                databases.discard(claim.using)
            time.sleep(pause)
            # Less than a lease: after the database's return the sweeper waits that long before it rescues.
            pause = min(pause * 2, settings.LEASE / 3)
