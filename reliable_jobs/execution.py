"""claim → run → settle, for one delivery.

First run of an atomic task, one transaction:

    BEGIN → lock the row → SAVEPOINT → body → deferred constraints → RELEASE → follow-ups, result, status → COMMIT

The careful path (the message was redelivered or sent again, the job crashed before, or the task is not atomic) commits
a claim with token and lease first, which counts the start; the body's transaction then locks the row by that token.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from celery.exceptions import Ignore
from django.db import Error as DatabaseError
from django.db import connections, transaction

from reliable_jobs import failures, followups, lifecycle, outcome
from reliable_jobs.conf import settings
from reliable_jobs.errors import BrokenTransaction, CrashLimitExceeded, RunTakenAway
from reliable_jobs.lifecycle import Claim, Refusal
from reliable_jobs.outcome import Interrupted, Outcome, Run, worker_name
from reliable_jobs.status import EventKind, Reason

if TYPE_CHECKING:
    from reliable_jobs.task import ReliableTask

logger = logging.getLogger("reliable_jobs.execution")
_T = TypeVar("_T")
_LEFT_OPEN = (
    "The body returned with a transaction still open (an atomic block entered and not left, a raw BEGIN?); what it "
    "wrote there is undone. Use `with transaction.atomic():`."
)


class NotStarted(Exception):
    """The database failed before the body began, which is free. The cause says how."""


def run_first(task: ReliableTask, job_id: uuid.UUID, rev: int, using: str, args: Any, kwargs: Any) -> Outcome | Refusal:
    """The first run of an atomic task: claim, body and settlement in one transaction.

    Raises:
        NotStarted: see there. Nothing was claimed.
    """
    return _run_in_transaction(task, using, lambda: lifecycle.claim_atomic(job_id, rev, using), args, kwargs)


def run_carefully(
    task: ReliableTask, job_id: uuid.UUID, rev: int, using: str, args: Any, kwargs: Any
) -> Outcome | Refusal:
    """Count and claim in one committed UPDATE, then run.

    Raises:
        NotStarted: see there. Nothing was claimed.
    """
    try:
        claim = lifecycle.claim_committed(
            job_id,
            rev,
            using,
            worker=worker_name(task),
            lease=settings.LEASE,
            deadline=None if task.atomic else task.run_deadline(),
        )
    except DatabaseError as error:
        if failures.prevents_start(error):
            raise NotStarted(str(error)) from error
        raise
    if isinstance(claim, Refusal):
        return claim
    if claim.job.crashes > settings.MAX_CRASHES:
        return _condemn(task, claim)
    if claim.job.crashes > 1:
        logger.warning("Job %s: %d start(s) never reported; running it with care.", claim.job.pk, claim.job.crashes - 1)
    if not task.atomic:
        return _run_leased(task, claim, args, kwargs)

    def hold() -> Claim | Refusal:
        return claim if lifecycle.hold_by_token(claim) else Refusal.LOCKED

    return _run_in_transaction(task, using, hold, args, kwargs, claim)


def _run_in_transaction(
    task: ReliableTask,
    using: str,
    get_claim: Callable[[], Claim | Refusal],
    args: Any,
    kwargs: Any,
    committed: Claim | None = None,
) -> Outcome | Refusal:
    claim: Claim | None = None
    ended: Outcome | None = None
    depth = len(connections[using].atomic_blocks)
    try:
        with transaction.atomic(using=using):
            got = get_claim()
            if isinstance(got, Refusal):
                return got
            claim = got
            ended = _body(task, Run(claim), args, kwargs)
            if not ended.settle(claim):
                raise RunTakenAway(f"Job {claim.job.pk} was taken away while it ran; what this run did is undone.")
        if _reset_if_open(using, depth):
            raise BrokenTransaction(_LEFT_OPEN)
    except RunTakenAway as error:
        logger.warning("%s", error)
        raise Ignore(str(error)) from error
    except BaseException as error:
        _reset_if_open(using, depth)
        if claim is not None and _out_of_time(task, error):
            raise  # no report: it counts as a crash, as the SIGKILL that follows would
        if claim is not None:
            return _after_broken_transaction(task, claim, ended, error)
        if not failures.prevents_start(error):
            raise
        if committed is not None:
            _give_back(task, committed, error)
        raise NotStarted(str(error)) from error
    return ended


def _give_back(task: ReliableTask, claim: Claim, error: BaseException) -> NoReturn:
    """A committed claim whose body never began: kept, its lease would count it as a crash."""
    _until_written(claim, lambda: lifecycle.run_again(claim, worker_name(task), Reason.INTERRUPTED, error=str(error)))
    raise Ignore(f"job {claim.job.pk} given back: {error}") from error


def _run_leased(task: ReliableTask, claim: Claim, args: Any, kwargs: Any) -> Outcome:
    """A non-atomic run: a thread keeps the lease, the body opens its own transactions, the settlement is fenced."""
    run = Run(claim)
    depth = len(connections[claim.using].atomic_blocks)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(run, stop), name="reliable_jobs-lease", daemon=True)
    beat.start()
    try:
        try:
            ended = _body(task, run, args, kwargs)
        except BaseException as error:
            if _out_of_time(task, error):
                raise  # as in _run_in_transaction
            ended = _blame(task, claim, error)

        if _reset_if_open(claim.using, depth) and not isinstance(ended.error, Exception):
            ended = outcome.failure(task, BrokenTransaction(_LEFT_OPEN))

        def write() -> bool:
            with transaction.atomic(using=claim.using):
                return ended.settle(claim)

        won = _until_written(claim, write)
    finally:
        stop.set()
        beat.join(timeout=settings.LEASE)
    if not won:
        message = f"Job {claim.job.pk} was taken away while it ran; its end is not recorded."
        logger.warning("%s", message)
        raise Ignore(message)
    return ended


def _heartbeat(run: Run, stop: threading.Event) -> None:
    claim = run.claim
    try:
        while not stop.wait(settings.LEASE / 3):
            try:
                if not lifecycle.extend_lease(claim, settings.LEASE):
                    run.lost = True
                    return
            except DatabaseError as error:
                logger.warning("Job %s: its lease could not be extended: %s", claim.job.pk, error)
                discard_connection(claim.using)
    finally:
        connections[claim.using].close()


def _body(task: ReliableTask, run: Run, args: Any, kwargs: Any) -> Outcome:
    """Run the body and say how it ended. Raises only what must roll back more than the body: Interrupted, and what
    ends the process."""
    claim, request = run.claim, task.request
    if claim.job.expires_at is not None and claim.job.expires_at <= claim.now:
        return outcome.expired(task, claim)
    unfit = task.misfit(args, kwargs)
    if unfit is not None:
        return outcome.misfit(task, claim, unfit)
    request.retries = claim.job.attempt
    request.reliable_run = run
    value, text, reason = None, None, Reason.NONE
    signal: BaseException | None = None
    try:
        with _savepoint(task, claim.using):
            try:
                value = task.run(*args, **kwargs)
            except Ignore as ignored:
                # Ignore, snooze and replace end a body that went as it wished: what it wrote stays.
                signal, reason = ignored, Reason.IGNORED
            else:
                text = outcome.encode_result(task, value)
            if task.atomic:
                _check_deferred_constraints(claim.using)
    except BaseException as error:
        return outcome.from_exception(task, run, error)
    finally:
        run.open = False
        request.reliable_run = None
    if run.again is not None:
        return outcome.again(task, run.again, signal or outcome.asked(run.again))
    follow = followups.take(task, value) if signal is None else None

    def settle(claim: Claim) -> bool:
        if not lifecycle.succeed(claim, worker_name(task), text, reason):
            return False
        if follow is not None:
            follow()
        return True

    return Outcome(settle, value=value, error=signal)


@contextmanager
def _savepoint(task: ReliableTask, using: str) -> Iterator[None]:
    if not task.atomic:
        yield
        return
    with transaction.atomic(using=using):
        yield


def _check_deferred_constraints(using: str) -> None:
    """Deferred constraints fail at the outer COMMIT, after every savepoint; here they still are the body's failure."""
    if connections[using].vendor == "postgresql":
        with connections[using].cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _after_broken_transaction(task: ReliableTask, claim: Claim, ended: Outcome | None, error: BaseException) -> Outcome:
    """An error out of COMMIT, of a hook behind it, or of the settlement: the row is read, nothing is guessed."""
    claimed_epoch = claim.job.epoch + (1 if claim.token else 0)

    def look_and_write() -> Outcome:
        row = lifecycle.find(claim.job.pk, claim.using)
        if row is None:
            raise Ignore(f"job {claim.job.pk}: {Refusal.MISSING.value}")
        if ended is not None and row.epoch > claimed_epoch and row.worker == worker_name(task) and row.token is None:
            logger.warning("Job %s: an error after its commit (%r); its settlement stands.", claim.job.pk, error)
            return ended
        for_good = isinstance(error, DatabaseError) and not failures.is_transient(error, claim.using)
        if for_good and ended is not None and isinstance(ended.error, Exception):
            written = ended  # the body had failed and taken its transaction along: its own error says more
        else:
            written = _blame(task, claim, error)
        with transaction.atomic(using=claim.using):
            if not written.settle(claim):
                raise Ignore(f"job {claim.job.pk}: {Refusal.LOCKED.value}")
        return written

    return _until_written(claim, look_and_write)


def _out_of_time(task: ReliableTask, error: BaseException) -> bool:
    """Whether the process is being ended by Celery's hard time limit, which sends TERM first, and not by a shutdown.

    The parent has recorded the limit as the cause; what is left is to be counted and bounded like any other kill.
    """
    limit = (task.request.timelimit or (None, None))[0] or task.time_limit
    began = task.request.get("reliable_began")
    if isinstance(error, Exception) or not limit or began is None:
        return False
    return bool(time.monotonic() - began >= float(limit) - 0.5)


def _blame(task: ReliableTask, claim: Claim, error: BaseException) -> Outcome:
    if isinstance(error, Interrupted):
        return outcome.interruption(task, claim, error.__cause__ or error)
    if isinstance(error, DatabaseError) and failures.is_transient(error, claim.using):
        return outcome.interruption(task, claim, error)
    if isinstance(error, Exception):
        return outcome.failure(task, error)
    return outcome.interruption(task, claim, error, error)


def _condemn(task: ReliableTask, claim: Claim) -> Outcome | Refusal:
    """Too many starts never reported: the job ends here, and Celery's failure hooks hear of it once."""
    death = lifecycle.last_death(claim.job.pk, claim.using)
    why = f"{claim.job.crashes - 1} starts never reported (MAX_CRASHES={settings.MAX_CRASHES})"
    if death is not None:
        why += f"; last seen: {death.detail}"
    reason = Reason.TIME_LIMIT if death is not None and death.kind == EventKind.TIME_LIMIT else Reason.CRASH
    error = CrashLimitExceeded(f"Job {claim.job.pk}: {why}. It is not started again by itself; requeue it when mended.")

    def settle() -> bool:
        with transaction.atomic(using=claim.using):
            return lifecycle.fail(claim, worker_name(task), reason, str(error), "", kind=EventKind.CRASH)

    return Outcome(lambda claim: True, error=error) if _until_written(claim, settle) else Refusal.LOCKED


def _until_written(claim: Claim, write: Callable[[], _T]) -> _T:
    """Do a write that reports a run, waiting out a database that is away: an unreported run would count as a crash."""
    pause, waited = 0.1, 0.0
    while True:
        try:
            return write()
        except DatabaseError as trouble:
            if waited >= settings.HOLD or not failures.is_transient(trouble, claim.using):
                raise
            logger.warning(
                "Job %s has run, but its end can't be written yet (%s); next try in %.1f s.",
                claim.job.pk,
                trouble,
                pause,
            )
            discard_connection(claim.using)
            time.sleep(pause)
            waited += pause
            # Less than a lease: after the database's return the sweeper waits that long before it rescues.
            pause = min(pause * 2, settings.LEASE / 3)


def _reset_if_open(using: str, depth: int) -> bool:
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
