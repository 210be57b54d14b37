"""claim → run → settle, for one delivery.

First run of an atomic task, one transaction (run/round_trips.py says which statements travel together):

    BEGIN → lock the row → SAVEPOINT → function → deferred constraints → RELEASE → follow-ups, result, status → COMMIT

With a committed claim (the message was redelivered or sent again, the job crashed before, or the task is not atomic)
token and lease are committed first, which counts the start; the function's transaction then locks the row by them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, SoftTimeLimitExceeded
from django.db import Error as DatabaseError
from django.db import connections, transaction

from reliable_jobs import lifecycle, signals
from reliable_jobs.compat.django import driver_of
from reliable_jobs.compat.django_transaction import open_blocks
from reliable_jobs.conf import settings
from reliable_jobs.errors import BrokenTransaction, RunTakenAway
from reliable_jobs.lifecycle import Claim, Refusal, db_errors
from reliable_jobs.logs import job_logger
from reliable_jobs.message import result_text
from reliable_jobs.run import kept_connections, lease, outcomes, recovery, settling
from reliable_jobs.run.arrival import Delivery
from reliable_jobs.run.round_trips import FunctionSavepoint, FunctionUndone, is_cut_off
from reliable_jobs.run.state import NotStarted, Outcome, Run
from reliable_jobs.status import Reason, Status
from reliable_jobs.workflow import errbacks, looks

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask
    from reliable_jobs.workflow.following import Following

logger = job_logger(__name__)

LEFT_OPEN = (
    "The task function returned with a transaction still open (an atomic block entered and not left, a raw BEGIN?); "
    "what it wrote there is undone. Use `with transaction.atomic():`."
)


def run_first(task: RunnableTask, delivery: Delivery, args: Any, kwargs: Any) -> Outcome | Refusal:
    """The first run of an atomic task: claim, function and settlement in one transaction.

    Raises:
        NotStarted: the database failed before the function began. Nothing was claimed.
    """
    take = functools.partial(
        lifecycle.claim_atomic, delivery.job_id, delivery.content_version, delivery.using, root_id=delivery.root_id
    )
    return _run_in_transaction(
        task, delivery.using, take, args, kwargs, worker=delivery.worker, following=delivery.following
    )


def run_with_committed_claim(task: RunnableTask, delivery: Delivery, args: Any, kwargs: Any) -> Outcome | Refusal:
    """Count and claim in one committed UPDATE, then run.

    Raises:
        NotStarted: the database failed before the function began. Nothing was claimed.
    """
    run = claim_committed(task, delivery)
    return run if isinstance(run, Refusal) else run_claimed(task, run, args, kwargs)


def claim_committed(task: RunnableTask, delivery: Delivery) -> Run | Refusal:
    """The claim alone; its start is counted until it reports.

    Raises:
        NotStarted: the database failed before the function began. Nothing was claimed.
    """
    try:
        claim = lifecycle.claim_committed(
            delivery.job_id,
            delivery.content_version,
            delivery.using,
            worker=delivery.worker,
            lease=settings.LEASE,
            deadline=None if task.atomic else task.run_deadline(),
            root_id=delivery.root_id,
        )
    except DatabaseError as error:
        if db_errors.prevents_start(error):
            raise NotStarted(str(error)) from error
        raise
    return claim if isinstance(claim, Refusal) else Run(claim, delivery.worker, delivery.following)


def crashed_too_often(task: RunnableTask, claim: Claim) -> bool:
    """Whether too many starts of the job never reported."""
    return claim.job.crashes > (settings.MAX_CRASHES if task.reruns else 1)


def run_claimed(task: RunnableTask, run: Run, args: Any, kwargs: Any) -> Outcome | Refusal:
    """Run a job that has been claimed with a token."""
    claim = run.claim
    if crashed_too_often(task, claim):
        return recovery.fail_for_crashes(task, run)
    if claim.job.crashes > 1:
        logger.warning("Job %s: %d start(s) never reported; running it with care.", claim.job.pk, claim.job.crashes - 1)
    if not task.atomic:
        return _run_leased(task, run, args, kwargs)
    take = functools.partial(lifecycle.lock_by_token, claim)
    return _run_in_transaction(task, claim.using, take, args, kwargs, worker=run.worker, committed=run)


def _run_in_transaction(
    task: RunnableTask,
    using: str,
    take: Callable[[], Claim | Refusal | bool],
    args: Any,
    kwargs: Any,
    *,
    worker: str,
    following: Following | None = None,
    committed: Run | None = None,
) -> Outcome | Refusal:
    """Lock the row, run the function and settle, in one transaction.

    Args:
        take: locks the row: for a first run the claim, for a committed one whether it still is this run's.
    """
    run: Run | None = None
    ended: Outcome | None = None
    depth = len(open_blocks(connections[using]))
    try:
        with transaction.atomic(using=using), FunctionSavepoint(using) as savepoint:
            taken = savepoint.claim(take)
            if isinstance(taken, Refusal):
                return taken
            if not taken:
                return Refusal.LOCKED
            run = Run(taken, worker, following) if isinstance(taken, Claim) else committed
            assert run is not None
            run.session = driver_of(connections[using])
            ended = _call_function(task, run, args, kwargs, savepoint)
            if ended.raised is not None and is_cut_off(run):
                raise ended.raised  # nothing is left of the transaction
            owes = run.claim.job.owes
            try:
                won = savepoint.settle(
                    functools.partial(settling.end, task, run, ended),
                    alone=ended.alone,
                    before=functools.partial(settling.follow_success, task, run, ended) if run.following else None,
                    behind=looks.behind_commit(owes, using) if owes is not None and looks.is_due(owes) else None,
                )
                if savepoint.found is not None:
                    ended.left = int(savepoint.found[0])
            except FunctionUndone as undone:
                ended = outcomes.from_exception(task, run, undone.__cause__ or undone)
                won = settling.settle(task, run, ended)
            if not won:
                raise RunTakenAway(f"Job {run.claim.job.pk} was taken away while it ran; what this run did is undone.")
        if kept_connections.reset_if_open(using, depth):
            raise BrokenTransaction(LEFT_OPEN)
    except RunTakenAway as error:
        logger.warning("%s", error)
        raise Ignore(str(error)) from error
    except BaseException as error:
        kept_connections.reset_if_open(using, depth)
        if run is not None and recovery.is_out_of_time(task, error):
            raise  # no report, as after the SIGKILL that follows
        if run is not None:
            return recovery.after_broken_transaction(task, run, ended, error)
        if not db_errors.prevents_start(error):
            raise
        if committed is not None:
            recovery.give_back(committed, error)
        raise NotStarted(str(error)) from error
    return ended


def _run_leased(task: RunnableTask, run: Run, args: Any, kwargs: Any) -> Outcome:
    """A non-atomic run: a thread keeps the lease, the function opens its own transactions, the settlement is fenced."""
    claim = run.claim
    depth = len(open_blocks(connections[claim.using]))
    with lease.kept_alive(run):
        try:
            ended = _call_function(task, run, args, kwargs, None)
        except BaseException as error:
            if recovery.is_out_of_time(task, error):
                raise  # as in _run_in_transaction
            ended = recovery.blame(task, run, error)

        if kept_connections.reset_if_open(claim.using, depth) and not isinstance(ended.error, Exception):
            ended = outcomes.failure(task, run, BrokenTransaction(LEFT_OPEN))

        def write() -> bool:
            with transaction.atomic(using=claim.using):
                won = settling.settle(task, run, ended)
                if not won:
                    transaction.set_rollback(True, using=claim.using)
                return won

        try:
            won = recovery.until_settled(run, ended, write)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            transient = isinstance(error, DatabaseError) and db_errors.is_transient(error, claim.using)
            if transient or ended.status != Status.SUCCEEDED or run.following is None:
                raise
            # What follows can't be written, now or ever: the job has not succeeded, and what it did stays done.
            ended = outcomes.failure(task, run, error)
            won = recovery.until_settled(run, ended, write)
    if not won:
        message = f"Job {claim.job.pk} was taken away while it ran; its end is not recorded."
        logger.warning("%s", message)
        raise Ignore(message)
    return ended


def _call_function(
    task: RunnableTask, run: Run, args: Any, kwargs: Any, savepoint: FunctionSavepoint | None
) -> Outcome:
    """Call the task function and say how it ended. Raises only what must roll back more than the function's writes:
    Interrupted, and what ends the process."""
    job, request = run.claim.job, task.request
    unfit: Outcome | None = None
    if job.expires_at is not None and job.expires_at <= run.claim.now:
        unfit = outcomes.expired(run)
    elif (why := task.misfit(args, kwargs)) is not None:
        unfit = outcomes.misfit(task, run, why)
    if unfit is not None:
        if savepoint is not None:
            savepoint.keep()
        return unfit
    if job.errback_of is not None:
        args = errbacks.arguments(task.app, run.claim.using, job, args)
    request.retries = job.failures
    # As Celery's message would have them: the row has taken them off ours.
    request.eta = job.due_at.isoformat() if job.due_at and job.due_at > job.created_at else None
    request.expires = job.expires_at and job.expires_at.isoformat()
    request.reliable_run = run
    value, text, reason = None, None, Reason.NONE
    signal: BaseException | None = None
    try:
        try:
            if signals.heard(signals.job_started):
                signals.send_started(job, run.claim.using, run.claim.waited)
            value = task.value_of(args, kwargs)
        except Ignore as ignored:
            # Ignore, snooze and replace end a function that went as it wished: what it wrote stays.
            signal, reason = ignored, Reason.IGNORED
        else:
            text = result_text.returned(task, value, needed=job.owes is not None)
        if savepoint is not None:
            savepoint.keep()
    except BaseException as error:
        return outcomes.from_exception(task, run, error if savepoint is None else savepoint.undo(error))
    finally:
        run.open = False
        request.reliable_run = None
    if is_cut_off(run):
        return outcomes.closed_its_connection(task, run)
    if run.again is not None:
        return outcomes.again(task, run, run.again, signal or outcomes.asked(run.again))

    settle = functools.partial(settling.succeeded, task, run.worker, text, reason)
    alone = signal is not None or run.following is None
    return Outcome(settle, value=value, error=signal, alone=alone, status=Status.SUCCEEDED)
