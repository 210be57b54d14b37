"""When a run did not end in order: its transaction broke, its process is being ended, its starts never reported, or
the database is away while the end is to be written. The row is read; nothing is guessed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

from celery.exceptions import Ignore, Retry
from django.db import Error as DatabaseError
from django.db import connections, transaction

from reliable_jobs import lifecycle
from reliable_jobs.conf import settings
from reliable_jobs.errors import BrokenTransaction, CrashLimitExceeded
from reliable_jobs.lifecycle import Claim, Refusal, db_errors
from reliable_jobs.run import outcomes, pools
from reliable_jobs.run.outcomes import Interrupted, Outcome, Run, worker_name
from reliable_jobs.status import EventKind, Reason, Status

if TYPE_CHECKING:
    from reliable_jobs.models import Job
    from reliable_jobs.protocols import RunnableTask

logger = logging.getLogger("reliable_jobs.execution")
_T = TypeVar("_T")
LEFT_OPEN = (
    "The body returned with a transaction still open (an atomic block entered and not left, a raw BEGIN?); what it "
    "wrote there is undone. Use `with transaction.atomic():`."
)


def after_broken_transaction(task: RunnableTask, run: Run, ended: Outcome | None, error: BaseException) -> Outcome:
    """An error out of COMMIT, of a hook behind it, or of the settlement: the row is read, nothing is guessed."""
    claim = run.claim

    def look_and_write() -> Outcome:
        row = lifecycle.find(claim.job.pk, claim.using)
        if row is None:
            raise Ignore(f"job {claim.job.pk}: {Refusal.MISSING.value}")
        if ended is not None and _is_own_settlement(task, claim, ended, row):
            logger.warning("Job %s: an error after its commit (%r); its settlement stands.", claim.job.pk, error)
            return ended
        if ended is not None and ended.raised is not None and _explains_more(ended.raised, error, claim.using):
            written = ended
        else:
            written = blame(task, run, error)
        with transaction.atomic(using=claim.using):
            if not written.settle(claim):
                raise Ignore(f"job {claim.job.pk}: {Refusal.LOCKED.value}")
        return written

    return until_written(claim, look_and_write)


def _is_own_settlement(task: RunnableTask, claim: Claim, ended: Outcome, row: Job) -> bool:
    """Whether the row was settled for good by this very run. A rescue and a cancel raise the epoch too, and leave this
    worker's name on the row."""
    claimed_epoch = claim.job.epoch + (1 if claim.token else 0)
    return (
        row.is_final
        and row.status == ended.status
        and row.epoch == claimed_epoch + 1
        and row.worker == worker_name(task)
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
    limit = (task.request.timelimit or (None, None))[0] or task.time_limit
    began = task.request.get("reliable_began")
    if isinstance(error, Exception) or not limit or began is None or not pools.enforces_hard_limit():
        return False
    return bool(time.monotonic() - began >= float(limit) - 0.5)


def blame(task: RunnableTask, run: Run, error: BaseException) -> Outcome:
    """The ending of a run that raised past its savepoint: its task's failure, or an interruption."""
    ended = _blame(task, run.claim, error)
    interrupted = isinstance(ended.error, Retry) or not isinstance(ended.error, Exception)
    return ended if interrupted else outcomes.with_rollback_calls(run, ended)


def _blame(task: RunnableTask, claim: Claim, error: BaseException) -> Outcome:
    if isinstance(error, Interrupted):
        return outcomes.interruption(task, claim, error.__cause__ or error)
    if isinstance(error, DatabaseError) and db_errors.is_transient(error, claim.using):
        return outcomes.interruption(task, claim, error)
    if isinstance(error, Exception):
        return outcomes.failure(task, error)
    return outcomes.interruption(task, claim, error, error)


def condemn(task: RunnableTask, claim: Claim) -> Outcome | Refusal:
    """Too many starts never reported: the job ends here, and Celery's failure hooks hear of it once."""
    death = lifecycle.last_death(claim.job.pk, claim.using)
    if task.reruns:
        why = f"{claim.job.crashes - 1} starts never reported (MAX_CRASHES={settings.MAX_CRASHES})"
    else:
        why = "its run never reported, and acks_late is off"
    if death is not None:
        why += f"; last seen: {death.detail}"
    reason = Reason.TIME_LIMIT if death is not None and death.kind == EventKind.TIME_LIMIT else Reason.CRASH
    error = CrashLimitExceeded(
        f"Job {claim.job.pk}: {why}. It is not started again by itself; requeue it when the cause is fixed."
    )

    def settle() -> bool:
        with transaction.atomic(using=claim.using):
            return lifecycle.fail(claim, worker_name(task), reason, str(error), "", kind=EventKind.CRASH)

    ended = Outcome(lambda claim: True, error=error, status=Status.FAILED)
    return ended if until_settled(task, claim, ended, settle) else Refusal.LOCKED


def give_back(task: RunnableTask, claim: Claim, error: BaseException) -> NoReturn:
    """A committed claim whose body never began: kept, its lease would count it as a crash."""
    until_written(claim, lambda: lifecycle.run_again(claim, worker_name(task), Reason.INTERRUPTED, error=str(error)))
    raise Ignore(f"job {claim.job.pk} given back: {error}") from error


def until_settled(task: RunnableTask, claim: Claim, ended: Outcome, write: Callable[[], bool]) -> bool:
    """Settle a committed claim, as :func:`until_written`. If the answer to a COMMIT was lost, a second try may find its
    fence broken by this run itself."""
    tries = 0

    def settle() -> bool:
        nonlocal tries
        tries += 1
        if write():
            return True
        row = lifecycle.find(claim.job.pk, claim.using) if tries > 1 else None
        return row is not None and _is_own_settlement(task, claim, ended, row)

    return until_written(claim, settle)


def until_written(claim: Claim, write: Callable[[], _T]) -> _T:
    """Do a write that reports a run, waiting out a database that is away: an unreported run would count as a crash."""
    pause, until = 0.1, time.monotonic() + settings.HOLD
    while True:
        try:
            return write()
        except DatabaseError as trouble:
            if time.monotonic() >= until or not db_errors.is_transient(trouble, claim.using):
                raise
            logger.warning(
                "Job %s has run, but its end can't be written yet (%s); next try in %.1f s.",
                claim.job.pk,
                trouble,
                pause,
            )
            discard_connection(claim.using)
            time.sleep(pause)
            # Less than a lease: after the database's return the sweeper waits that long before it rescues.
            pause = min(pause * 2, settings.LEASE / 3)


def reset_if_open(using: str, depth: int) -> bool:
    """Start with a new connection where a body left its transaction open: nothing would be committed on this one, and
    the next job of this process would be lost in it. Says whether there was such a transaction.

    Args:
        depth: atomic blocks that were open before the run; a test's own are not touched.
    """
    connection = connections[using]
    if depth:
        return False
    open_block = connection.in_atomic_block
    if not open_block and connection.connection is not None and connection.settings_dict["AUTOCOMMIT"]:
        if connection.vendor == "postgresql":
            # ACTIVE, INTRANS or INERROR, in libpq's numbers: a raw BEGIN.
            open_block = connection.connection.info.transaction_status in (1, 2, 3)
        if not open_block and connection.autocommit:
            return False
    elif not open_block:
        return False
    connection.close()
    del connections[using]
    return bool(open_block)


def discard_connection(using: str) -> None:
    """Close a connection that failed, so that the next statement opens a new one."""
    if not connections[using].in_atomic_block:
        connections[using].close()
