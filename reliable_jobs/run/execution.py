"""claim → run → settle, for one delivery.

First run of an atomic task, one transaction:

    BEGIN → lock the row → SAVEPOINT → body → deferred constraints → RELEASE → follow-ups, result, status → COMMIT

(run/round_trips.py says which of them travel together).

With a committed claim (the message was redelivered or sent again, the job crashed before, or the task is not atomic)
token and lease are committed first, which counts the start; the function's transaction then locks the row by them.
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore
from django.db import Error as DatabaseError
from django.db import connections, transaction

from reliable_jobs import lifecycle
from reliable_jobs.conf import settings
from reliable_jobs.errors import BrokenTransaction, RunTakenAway
from reliable_jobs.lifecycle import Claim, Refusal, db_errors
from reliable_jobs.run import followups, native, outcomes, recovery
from reliable_jobs.run.outcomes import Outcome, Run, worker_name
from reliable_jobs.run.round_trips import BodySavepoint, ConstraintViolated
from reliable_jobs.status import Reason, Status

if TYPE_CHECKING:
    from reliable_jobs.protocols import RunnableTask

logger = logging.getLogger("reliable_jobs.execution")


class NotStarted(Exception):
    """The database failed before the body began, which is free. The cause says how."""


def run_first(task: RunnableTask, job_id: uuid.UUID, rev: int, using: str, args: Any, kwargs: Any) -> Outcome | Refusal:
    """The first run of an atomic task: claim, body and settlement in one transaction.

    Raises:
        NotStarted: see there. Nothing was claimed.
    """
    return _run_in_transaction(task, using, lambda: lifecycle.claim_atomic(job_id, rev, using), args, kwargs)


def run_with_committed_claim(
    task: RunnableTask, job_id: uuid.UUID, rev: int, using: str, args: Any, kwargs: Any
) -> Outcome | Refusal:
    """Count and claim in one committed UPDATE, then run.

    Raises:
        NotStarted: see there. Nothing was claimed.
    """
    claim = claim_committed_for(task, job_id, rev, using)
    return claim if isinstance(claim, Refusal) else run_claimed(task, claim, args, kwargs)


def claim_committed_for(task: RunnableTask, job_id: uuid.UUID, rev: int, using: str) -> Claim | Refusal:
    """The claim alone; its start is counted until it reports.

    Raises:
        NotStarted: see there. Nothing was claimed.
    """
    try:
        return lifecycle.claim_committed(
            job_id,
            rev,
            using,
            worker=worker_name(task),
            lease=settings.LEASE,
            deadline=None if task.atomic else task.run_deadline(),
        )
    except DatabaseError as error:
        if db_errors.prevents_start(error):
            raise NotStarted(str(error)) from error
        raise


def condemned(task: RunnableTask, claim: Claim) -> bool:
    """Whether too many starts of the job never reported."""
    return claim.job.crashes > (settings.MAX_CRASHES if task.reruns else 1)


def run_claimed(task: RunnableTask, claim: Claim, args: Any, kwargs: Any) -> Outcome | Refusal:
    """Run a job that has been claimed with a token."""
    if condemned(task, claim):
        return recovery.condemn(task, claim)
    if claim.job.crashes > 1:
        logger.warning("Job %s: %d start(s) never reported; running it with care.", claim.job.pk, claim.job.crashes - 1)
    if not task.atomic:
        return _run_leased(task, claim, args, kwargs)

    def hold() -> Claim | Refusal:
        return claim if lifecycle.hold_by_token(claim) else Refusal.LOCKED

    return _run_in_transaction(task, claim.using, hold, args, kwargs, claim)


def _run_in_transaction(
    task: RunnableTask,
    using: str,
    get_claim: Callable[[], Claim | Refusal],
    args: Any,
    kwargs: Any,
    committed: Claim | None = None,
) -> Outcome | Refusal:
    claim: Claim | None = None
    run: Run | None = None
    ended: Outcome | None = None
    depth = len(connections[using].atomic_blocks)
    try:
        with transaction.atomic(using=using), BodySavepoint(using) as savepoint:
            got = savepoint.claim(get_claim)
            if isinstance(got, Refusal):
                return got
            claim, run = got, Run(got, session=connections[using].connection)
            ended = _body(task, run, args, kwargs, savepoint.body())
            if run.is_cut_off() and ended.raised is not None:
                raise ended.raised  # nothing is left of the transaction
            try:
                won = savepoint.settle(functools.partial(ended.settle, claim), alone=ended.alone)
            except ConstraintViolated as violated:
                ended = outcomes.from_exception(task, run, violated.__cause__ or violated)
                won = ended.settle(claim)
            if not won:
                raise RunTakenAway(f"Job {claim.job.pk} was taken away while it ran; what this run did is undone.")
        if recovery.reset_if_open(using, depth):
            raise BrokenTransaction(recovery.LEFT_OPEN)
    except RunTakenAway as error:
        logger.warning("%s", error)
        raise Ignore(str(error)) from error
    except BaseException as error:
        recovery.reset_if_open(using, depth)
        if claim is not None and recovery.is_out_of_time(task, error):
            raise  # no report: it counts as a crash, as the SIGKILL that follows would
        if run is not None:
            return recovery.after_broken_transaction(task, run, ended, error)
        if not db_errors.prevents_start(error):
            raise
        if committed is not None:
            recovery.give_back(task, committed, error)
        raise NotStarted(str(error)) from error
    return ended


def _run_leased(task: RunnableTask, claim: Claim, args: Any, kwargs: Any) -> Outcome:
    """A non-atomic run: a thread keeps the lease, the body opens its own transactions, the settlement is fenced."""
    run = Run(claim)
    depth = len(connections[claim.using].atomic_blocks)
    with kept_alive(run):
        try:
            ended = _body(task, run, args, kwargs, nullcontext())
        except BaseException as error:
            if recovery.is_out_of_time(task, error):
                raise  # as in _run_in_transaction
            ended = recovery.blame(task, run, error)

        if recovery.reset_if_open(claim.using, depth) and not isinstance(ended.error, Exception):
            ended = outcomes.failure(task, BrokenTransaction(recovery.LEFT_OPEN))

        def write() -> bool:
            with transaction.atomic(using=claim.using):
                return ended.settle(claim)

        won = recovery.until_settled(task, claim, ended, write)
    if not won:
        message = f"Job {claim.job.pk} was taken away while it ran; its end is not recorded."
        logger.warning("%s", message)
        raise Ignore(message)
    return ended


@contextmanager
def kept_alive(run: Run) -> Iterator[None]:
    """Inside, a thread extends the lease of a committed claim."""
    beat = native.Thread(functools.partial(_heartbeat, run))
    try:
        yield
    finally:
        beat.stop.release()
        beat.join(timeout=settings.LEASE)
        if run.missed_beats:
            # Here, because in the other thread a log handler's lock, as eventlet makes it, would hang the worker.
            logger.warning(
                "Job %s: its lease could not be extended %d time(s) while it ran; the last error: %r",
                run.claim.job.pk,
                run.missed_beats,
                run.last_miss,
            )


def _heartbeat(run: Run, stop: Any) -> None:
    claim = run.claim
    try:
        while not stop.acquire(timeout=settings.LEASE / 3):
            try:
                if not lifecycle.extend_lease(claim, settings.LEASE):
                    run.lost = True
                    return
            except Exception as error:  # whatever it is: a run without a lease would be begun a second time
                run.missed_beats, run.last_miss = run.missed_beats + 1, error.with_traceback(None)
                recovery.discard_connection(claim.using)
    finally:
        connections[claim.using].close()


def _body(task: RunnableTask, run: Run, args: Any, kwargs: Any, savepoint: AbstractContextManager[None]) -> Outcome:
    """Run the body and say how it ended. Raises only what must roll back more than the body: Interrupted, and what
    ends the process."""
    claim, request = run.claim, task.request
    if claim.job.expires_at is not None and claim.job.expires_at <= claim.now:
        return outcomes.expired(task, claim)
    unfit = task.misfit(args, kwargs)
    if unfit is not None:
        return outcomes.misfit(task, claim, unfit)
    request.retries = claim.job.attempt
    request.reliable_run = run
    value, text, reason = None, None, Reason.NONE
    signal: BaseException | None = None
    try:
        with savepoint:
            try:
                value = task.value_of(args, kwargs)
            except Ignore as ignored:
                # Ignore, snooze and replace end a body that went as it wished: what it wrote stays.
                signal, reason = ignored, Reason.IGNORED
            else:
                text = outcomes.encode_result(task, value)
    except BaseException as error:
        return outcomes.from_exception(task, run, error)
    finally:
        run.open = False
        request.reliable_run = None
    if run.is_cut_off():
        return outcomes.with_rollback_calls(run, outcomes.closed_its_connection(task))
    if run.again is not None:
        return outcomes.again(task, run.again, signal or outcomes.asked(run.again))
    follow = followups.take(task, outcomes.as_celery_stores(value)) if signal is None else None

    def settle(claim: Claim) -> bool:
        if not lifecycle.succeed(claim, worker_name(task), text, reason):
            return False
        if follow is not None:
            follow()
        return True

    return Outcome(settle, value=value, error=signal, alone=follow is None, status=Status.SUCCEEDED)
