"""Errors that no run has reported: raised between a message's arrival and its answer, before the claim or around it.

Such an error becomes the job's history and ends the job after a bounded number of tries. What Celery itself fails a
task for (``before_start``, a ``__call__`` of the project's) fails the job at once, as a function's own error does, and
is written before Celery's hooks hear of it. Any other error comes from the worker: the job runs again, with back-off,
until MAX_INTERRUPTIONS. Neither is a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject, Retry
from django.db import Error as DatabaseError
from django.db import connections, transaction

from reliable_jobs import lifecycle
from reliable_jobs.compat.django_transaction import is_of_a_test, open_blocks
from reliable_jobs.conf import settings
from reliable_jobs.errors import NotRecorded, WorkerFailed
from reliable_jobs.lifecycle import Refusal, db_errors
from reliable_jobs.lifecycle.delays import interruption_delay
from reliable_jobs.logs import job_logger
from reliable_jobs.message import exception_text
from reliable_jobs.run import kept_connections, outcomes, recovery, settling
from reliable_jobs.run.arrival import Delivery, ensure_row, read_delivery, waiting_out_outages
from reliable_jobs.run.state import Interrupted, NotStarted, Outcome, Run
from reliable_jobs.run.trail import Trail
from reliable_jobs.status import CLOSES, EventKind, Reason, Status

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask

logger = job_logger(__name__)


def write_failure(task: RunnableTask, trail: Trail, error: BaseException) -> None:
    """A hook raised: end the job as if its function had, or as the Ignore, Retry or Reject says. Sets the answer.

    Raises:
        celery.exceptions.Reject: the database can't be reached; the message goes back.
    """

    def ending(run: Run) -> Outcome:
        if isinstance(error, Ignore):
            return Outcome(
                lambda claim: lifecycle.succeed(claim, run.worker, None, Reason.IGNORED),
                error=error,
                status=Status.SUCCEEDED,
            )
        try:
            return outcomes.from_exception(task, run, error)
        except Interrupted as interrupted:
            return recovery.interruption(task, run, interrupted.__cause__ or interrupted)

    _write(task, trail, error, ending)


def write_interruption(task: RunnableTask, trail: Trail, error: BaseException) -> None:
    """The worker's own code failed: run again with back-off, or fail when the budget is used up. Sets the answer.

    Raises:
        celery.exceptions.Reject: the database can't be reached; the message goes back.
    """
    text, trace = described(task, error)

    def ending(run: Run) -> Outcome:
        count, worker = run.claim.job.interruptions + 1, run.worker
        shown = f"the worker failed around this run: {text}"
        why = ""
        if count > settings.MAX_INTERRUPTIONS:
            why = (
                f"the worker failed {count} times around a run (MAX_INTERRUPTIONS={settings.MAX_INTERRUPTIONS}): {text}"
            )
        elif run.claim.token is not None and not task.reruns:  # left by this thread, and its function may have begun
            why = f"the worker failed around a run that is not begun again ({recovery.NO_RERUNS}): {text}"
        if why:
            failed = WorkerFailed(why)
            exception = exception_text.encode(failed)
            return Outcome(
                lambda claim: lifecycle.fail(
                    *(claim, worker, Reason.INTERRUPTED, why, trace),
                    kind=EventKind.INTERRUPTION,
                    exception=exception,
                    error_class=db_errors.class_of(failed),
                ),
                error=failed,
                status=Status.FAILED,
            )
        delay = interruption_delay(count - 1)
        return Outcome(
            lambda claim: lifecycle.run_again(
                claim,
                worker,
                Reason.INTERRUPTED,
                delay=delay,
                error=shown,
                traceback=trace,
                error_class=db_errors.class_of(error),
                kind=EventKind.INTERRUPTION,
                interruption=1,
            ),
            error=Retry(shown, when=delay),
        )

    _write(task, trail, error, ending)


def note(task: RunnableTask, error: BaseException) -> None:
    """Add an error that came after the job's settlement to its history; the settlement stands. Never raises."""
    try:
        text, trace = described(task, error)
        logger.warning("Job %s: an error after its run was settled: %s", task.request.id, type(error).__name__)
        delivery = read_delivery(task)
        lifecycle.record(
            lifecycle.Subject(delivery.job_id, task.name),
            delivery.using,
            EventKind.FAILURE,
            delivery.worker,
            f"after the run had been settled, which stands: {text}",
            trace,
        )
    except Exception as trouble:  # the history is poorer, the job is right
        logger.warning("An error after a job's run could not be recorded: %r", trouble)


def described(task: RunnableTask, error: BaseException) -> tuple[str, str]:
    """Text and traceback as they may be shown."""
    text, trace = db_errors.describe(error), db_errors.trace(error)
    try:
        secrets = task.secrets(task.request.args, task.request.kwargs)
    except Exception:  # of the arguments' own code; what can't be told apart is hidden
        return type(error).__name__, ""
    return db_errors.redact(text, secrets), db_errors.redact(trace, secrets)


def _write(task: RunnableTask, trail: Trail, error: BaseException, ending: Callable[[Run], Outcome]) -> None:
    """Write the end that ``ending`` makes of the error, and set the trail's answer.

    Raises:
        NotRecorded: to write it failed as well.
        celery.exceptions.Reject: the database can't be reached; the message goes back.
    """
    try:
        trail.answer = _written(task, error, ending)
    except Reject:
        raise
    except Exception as trouble:
        trail.error = error
        logger.critical("A job's error (%s) could not be recorded: %r", type(error).__name__, trouble)
        text = f"{described(task, error)[0]}\n(To record it failed: {type(trouble).__name__})"
        raise NotRecorded(text) from trouble


def _written(
    task: RunnableTask, error: BaseException, ending: Callable[[Run], Outcome]
) -> tuple[Any, BaseException | None]:
    delivery = read_delivery(task)
    _clean_connection(delivery.using)

    def attempt() -> Outcome | Refusal:
        try:
            if not delivery.ours:
                ensure_row(task, delivery)
            return _claim_and_settle(task, delivery, ending)
        except DatabaseError as trouble:
            if db_errors.prevents_start(trouble):
                raise NotStarted(str(trouble)) from trouble
            raise

    ended = waiting_out_outages(delivery.using, f"The error of job {delivery.job_id}", attempt)
    if isinstance(ended, Refusal):
        # A copy: the job has ended, runs elsewhere, or is not due. Nothing fires for it.
        logger.warning("Job %s: %s; a message of it met %s.", delivery.job_id, ended.value, type(error).__name__)
        ignored = Ignore(f"job {delivery.job_id}: {ended.value}")
        setattr(ignored, CLOSES, "task-rejected")
        return None, ignored
    logger.warning("Job %s: an error outside its function was recorded: %s", delivery.job_id, type(error).__name__)
    return ended.value, ended.error


def _claim_and_settle(task: RunnableTask, delivery: Delivery, ending: Callable[[Run], Outcome]) -> Outcome | Refusal:
    with transaction.atomic(using=delivery.using):
        claim = lifecycle.claim_to_report(delivery.job_id, delivery.content_version, delivery.using, delivery.worker)
        if isinstance(claim, Refusal):
            return claim
        run = Run(claim, delivery.worker, delivery.following)
        ended = ending(run)
        return ended if settling.settle(task, run, ended) else Refusal.LOCKED


def _clean_connection(using: str) -> None:
    """Leave no transaction of the broken run open; a test's own is not touched."""
    connection: Any = connections[using]
    blocks = open_blocks(connection)
    if not any(is_of_a_test(block) for block in blocks):
        kept_connections.reset_if_open(using, 0)
