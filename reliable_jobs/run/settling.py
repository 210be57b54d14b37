"""The end of a run, written with what follows: callbacks and chain after a success, errbacks after a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliable_jobs import lifecycle
from reliable_jobs.enqueue import owing
from reliable_jobs.lifecycle import Claim, db_errors
from reliable_jobs.message import result_text
from reliable_jobs.run.state import Outcome, Run
from reliable_jobs.status import Status
from reliable_jobs.workflow import cancelling, followups
from reliable_jobs.workflow.following import Ended, is_written_here

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask


def settle(task: RunnableTask, run: Run, ended: Outcome) -> bool:
    """Write the end of a run in the open transaction, with what follows; says whether this run still owned the job. If
    not, the caller rolls back.

    Raises:
        Exception: of any kind, what follows a success can't be written.
    """
    follow_success(task, run, ended)
    return end(task, run, ended)


def follow_success(task: RunnableTask, run: Run, ended: Outcome) -> None:
    """What follows a success. Written before the end itself: then the job's children are known.

    Raises:
        Exception: of any kind.
    """
    left, claim = run.following, run.claim
    if left is not None and ended.status == Status.SUCCEEDED and ended.error is None:
        with owing.inheriting(claim.job.owes, claim.job.place, many=left.is_group) as heir:
            followups.after_success(_ended(task, claim), left, ended.value)
        claim.hands_on = bool(heir.taken)


def end(task: RunnableTask, run: Run, ended: Outcome) -> bool:
    """The end itself, and what follows a failure."""
    claim = run.claim
    # Noted before: the COMMIT may travel with the end, and its answer may be lost.
    still_owes = ended.status != Status.SUCCEEDED or not claim.hands_on
    ended.owes = claim.job.owes if ended.status != Status.WAITING and still_owes else None
    if not ended.settle(claim):
        return False
    if ended.status in (Status.FAILED, Status.EXPIRED) and ended.error is not None:
        write_failure(task, run, ended.error)
    return True


def succeeded(task: RunnableTask, worker: str, result: str | None, reason: str, claim: Claim) -> bool:
    """The end of a task function that returned, for :attr:`Outcome.settle`: its children are known by then.

    Args:
        result: as text for the row.
    """
    request = task.request
    started = result_text.started_by(request) if request.children else None
    return lifecycle.succeed(claim, worker, result, reason, subtasks=started)


def replaced(task: RunnableTask, run: Run, by: Any, signal: BaseException) -> Outcome:
    """The job has replaced itself by other tasks. They are written now; its row is held until the last of them is,
    which has its id."""

    def settle(claim: Claim) -> bool:
        why = cancelling.stops(_ended(task, claim))
        if why is not None:
            return lifecycle.cancel_run(claim, run.worker, why)
        ours = is_written_here(task.app, by, str(task.request.id))
        if not lifecycle.keep_place(claim, run.worker, sent=not ours):
            return False
        with _ended(task, claim).unit():
            by.apply_async()
        return True

    return Outcome(settle, error=signal)


def write_failure(task: RunnableTask, run: Run, error: BaseException) -> None:
    """What follows a job that has failed for good, in the transaction of that."""
    if run.following is not None:
        # The values of sensitive arguments are gone from an error that is told, and so they must be from its traceback.
        secrets = task.secrets(task.request.args, task.request.kwargs)
        trace = db_errors.redact(db_errors.trace(error), secrets)
        followups.after_failure(_ended(task, run.claim), run.following, error, trace)


def _ended(task: RunnableTask, claim: Claim) -> Ended:
    request: Any = task.request
    info = request.delivery_info or {}
    return Ended(
        app=task.app,
        using=claim.using,
        job_id=claim.job.pk,
        task_id=str(request.id),
        root_id=request.root_id,
        queue=info.get("routing_key") or "",
        priority=info.get("priority"),
    )
