"""deliver: from a message that Celery's tracer hands over to a run, or to nothing.

What the tracer is told: the value, the function's own exception, or Celery's Retry, Ignore and Reject. The row is the
result of record: the end of a run is written there before the tracer hears of it. Copies (duplicates) of a message, and
those that come too early or too late, are dropped in ``_refused``.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, NoReturn

from celery.exceptions import Ignore, Reject, Retry
from django.db import Error as DatabaseError
from django.db import connections

from reliable_jobs import lifecycle
from reliable_jobs.compat.celery_run import NOTHING_FOLLOWS
from reliable_jobs.lifecycle import Refusal, db_errors
from reliable_jobs.lifecycle.delays import crash_delay
from reliable_jobs.logs import job_logger
from reliable_jobs.models import Job, PauseKind
from reliable_jobs.run import arrival, execution, recovery, unreported_errors
from reliable_jobs.run.arrival import Delivery, ensure_row, read_delivery, waiting_out_outages
from reliable_jobs.run.state import NotStarted, Outcome
from reliable_jobs.run.trail import TRAIL, Trail
from reliable_jobs.status import CLOSES, Status
from reliable_jobs.workflow import chords

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask

logger = job_logger(__name__)

#: How long a redelivered message waits for its row, in seconds: the session of a killed worker may hold it a moment
#: longer than the worker lived.
REDELIVERY_PATIENCE = 5.0
#: How long a first message waits for its row under InnoDB, in seconds, before the lock counts as another run's: InnoDB
#: briefly locks rows that a statement merely examines.
INNODB_PATIENCE = 2.0


def deliver(task: RunnableTask, args: Any, kwargs: Any) -> Any:
    """Run one delivery of a job to its settlement and answer the tracer.

    Raises:
        celery.exceptions.Retry, Ignore, Reject: for the tracer.
        Exception: the function's own, after the failure was written.
    """
    task.request.reliable_began = time.monotonic()
    info = task.request.delivery_info  # without a call, as in ReliableTask.__call__
    trail = (info.get(TRAIL) if isinstance(info, dict) else None) or Trail()
    trail.reached = True
    try:
        delivery = read_delivery(task)
        if trail.following is not None:
            trail.show_following(task.request)
        ended = waiting_out_outages(
            delivery.using, f"Job {delivery.job_id}", functools.partial(_run, task, delivery, trail, args, kwargs)
        )
        if ended.owes is not None:
            chords.part_ended(task.app, ended.owes, delivery.using, left=ended.left)
        if isinstance(ended.error, Ignore):
            setattr(ended.error, CLOSES, "task-retried" if ended.status == Status.WAITING else "task-succeeded")
        trail.answer = (ended.value, ended.error)
    except (Ignore, Reject, Retry) as signal:
        if not hasattr(signal, CLOSES):
            setattr(signal, CLOSES, "task-rejected")  # taken away while it ran, or given back
        trail.answer = (None, signal)
    except Exception as error:  # of the worker's own code: whatever it is, the job's history says so
        unreported_errors.write_interruption(task, trail, error)
    # Without a call of ours: from here on nothing may fail.
    task.request.update(NOTHING_FOLLOWS)
    value, ends = trail.answer or (None, None)
    if ends is not None:
        raise ends
    return value


def claim_early(task: RunnableTask, trail: Trail) -> None:
    """Claim before a hook of the project's that comes before the task function, so that a start in which the hook kills
    its process is counted. With a committed claim only; the first start of a job is not counted.

    Raises:
        celery.exceptions.Retry, Ignore, Reject, CrashLimitExceeded: the hook is not to run; the answer is in the trail.
    """
    try:
        delivery = read_delivery(task)
        waiting_out_outages(
            delivery.using, f"Job {delivery.job_id}", functools.partial(_claim_early, task, delivery, trail)
        )
    except (Ignore, Reject) as signal:
        trail.answer = (None, signal)
    except Exception as error:  # as in deliver()
        unreported_errors.write_interruption(task, trail, error)
    if trail.answer is not None and trail.answer[1] is not None:
        raise trail.answer[1]


def _claim_early(task: RunnableTask, delivery: Delivery, trail: Trail) -> None:
    if not delivery.commits_claim and not _has_crashed(delivery):
        return
    if not delivery.ours:
        ensure_row(task, delivery)
    patience = _patience(task, delivery)
    while True:
        run = execution.claim_committed(task, delivery)
        if not isinstance(run, Refusal):
            break
        if run is not Refusal.LOCKED or time.monotonic() >= patience:
            _refused(task, delivery, run)
        time.sleep(0.1)
    if not execution.crashed_too_often(task, run.claim):
        trail.run = run
        return
    ended = recovery.fail_for_crashes(task, run)
    if isinstance(ended, Refusal):
        _refused(task, delivery, ended)
    trail.answer = (ended.value, ended.error)


def _patience(task: RunnableTask, delivery: Delivery) -> float:
    """Until when to wait for a row that is held (monotonic). Sooner than the task's time limits: they would end this
    process, and tell of a run that there was not."""
    first = INNODB_PATIENCE if connections[delivery.using].vendor == "mysql" else 0.0
    limits = [*(task.request.timelimit or ()), task.time_limit, task.soft_time_limit]
    seconds = REDELIVERY_PATIENCE if delivery.redelivered else first
    return time.monotonic() + min([seconds, *(limit / 2 for limit in limits if limit)])


def _has_crashed(delivery: Delivery) -> bool:
    """Whether the job has crashed before. The message of a rescued job does not show it: it looks like a first one."""
    try:
        job = Job.objects.using(delivery.using).find(delivery.job_id)
    except DatabaseError as error:
        if db_errors.prevents_start(error):
            raise NotStarted(str(error)) from error
        raise
    return job is not None and bool(job.crashes)


def _run(task: RunnableTask, delivery: Delivery, trail: Trail, args: Any, kwargs: Any) -> Outcome:
    if trail.run is not None:
        run, trail.run = trail.run, None
        ended = execution.run_claimed(task, run, args, kwargs)
        if isinstance(ended, Refusal):
            _refused(task, delivery, ended)
        return ended
    if not delivery.ours:
        ensure_row(task, delivery)
    commits = delivery.commits_claim
    patience = _patience(task, delivery)
    while True:
        how = execution.run_with_committed_claim if commits else execution.run_first
        answer = how(task, delivery, args, kwargs)
        if answer is Refusal.SUSPECT:
            commits = True
        elif not isinstance(answer, Refusal):
            return answer
        elif answer is not Refusal.LOCKED or time.monotonic() >= patience:
            _refused(task, delivery, answer)
        else:
            time.sleep(0.05)


#: How monitors see a delivery of a job that has ended: as the row has.
_ENDED = {
    Status.SUCCEEDED: "task-succeeded",
    Status.FAILED: "task-failed",
    Status.CANCELLED: "task-revoked",
    Status.EXPIRED: "task-revoked",
}
#: Of the others. A job that runs elsewhere is closed by its run; one that waits comes again; one without a row never.
_CLOSED = {Refusal.LOCKED: "task-rejected", Refusal.MISSING: "task-revoked"}


_PAUSED = {Refusal.QUEUE_PAUSED: PauseKind.QUEUE, Refusal.TASK_PAUSED: PauseKind.TASK}


def _refused(task: RunnableTask, delivery: Delivery, why: Refusal) -> NoReturn:
    """Drop a delivery that gets no claim: a copy (duplicate), or one that comes too early or too late.

    No function runs, and Celery fires no success or failure. Where the job has ended, the result backend is brought in
    line; where another suspect runs here, the job is due again after a moment; where its queue or task is paused, it
    waits without a message.
    """
    ignored = Ignore(f"job {delivery.job_id}: {why.value}")
    closes = _CLOSED.get(why, "task-retried")
    if why is Refusal.FINAL:
        job = Job.objects.using(delivery.using).find(delivery.job_id)
        if job is not None:
            closes = _ENDED.get(Status(job.status), closes)
            if job.owes is not None:  # its worker may have died before it looked
                chords.part_ended(task.app, job.owes, delivery.using)
            if not (task.request.ignore_result or task.ignore_result):
                # Its worker may have died between its commit and the store.
                task.backend.align(str(task.request.id), task.request)
    elif why is Refusal.MISSING:
        logger.warning("Job %s has no row %s; message dropped.", delivery.job_id, arrival.why_no_row(task, delivery))
    elif why is Refusal.CANCELLED:
        lifecycle.cancel([delivery.job_id], delivery.using, actor="cancelled workflow")
        closes = _ENDED[Status.CANCELLED]
    elif why in _PAUSED:
        lifecycle.put_back(delivery.job_id, _PAUSED[why], delivery.using)
    elif why is Refusal.ALONE:
        lifecycle.step_back(delivery.job_id, delivery.using, crash_delay(2))  # about 2 s
    setattr(ignored, CLOSES, closes)
    raise ignored
