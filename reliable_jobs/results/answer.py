"""The answer of a row: one function, for every reader. Pure: no query."""

from __future__ import annotations

from typing import Any

from celery.exceptions import TaskRevokedError
from celery.states import PENDING, READY_STATES, RETRY, STARTED, SUCCESS

from reliable_jobs.errors import CrashLimitExceeded, InterruptionLimitExceeded, JobExpired, JobParked
from reliable_jobs.message import exception_text, result_text
from reliable_jobs.models import Job, JobState
from reliable_jobs.status import CELERY_STATES, Reason, Status

#: State of a side row: the result was forgotten.
FORGOTTEN = "reliable_jobs.forgotten"
#: Of a row that waits: Celery calls it a retry where a run has reported that there is to be another.
_RETRYING = (Reason.ERROR, Reason.ASKED, Reason.INTERRUPTED)
_BY_REASON: dict[str, type[Exception]] = {
    Reason.PARKED: JobParked,
    Reason.CRASH: CrashLimitExceeded,
    Reason.TIME_LIMIT: CrashLimitExceeded,
    Reason.INTERRUPTED: InterruptionLimitExceeded,
}


def answer(row: Job | None, side: JobState | None, wrapped: dict[str, Any] | None) -> dict[str, Any]:
    """What is known of a task, as a result backend's ``get_task_meta`` gives it.

    Args:
        row: the job's row; None where there is none.
        side: what the task function has said of itself since it last began (``update_state``, STARTED).
        wrapped: what another result backend knows; asked where the row has no answer.
    """
    if row is None or not has_answer(row):
        return wrapped or {"status": PENDING, "result": None}
    if row.is_final:
        return _of_final(row, side)
    if side is not None and side.epoch == row.epoch and side.state not in READY_STATES and side.state != FORGOTTEN:
        return _of_side(row, side)
    return _of_unfinished(row)


def has_answer(row: Job) -> bool:
    """Whether the row answers. What became of a message that was only relayed its worker knows, and its result
    backend, unless the message never got there."""
    return not row.relay_only or row.status in (Status.FAILED, Status.CANCELLED)


def _of_final(row: Job, side: JobState | None) -> dict[str, Any]:
    if side is not None and side.epoch >= row.epoch - 1:
        if side.state == FORGOTTEN and side.epoch == row.epoch:
            return {"task_id": str(row.pk), "status": PENDING, "result": None}
        if row.reason == Reason.IGNORED and side.state != STARTED:
            return _of_side(row, side)  # update_state(…), and then raise Ignore(): the task has named its own end
    return {
        **_common(row, CELERY_STATES[row.status]),
        "result": result_of(row),
        "traceback": row.traceback or None,
        "children": [] if row.subtasks is None else result_text.decode(row.subtasks),
        "date_done": row.finished_at,
    }


def _of_side(row: Job, side: JobState) -> dict[str, Any]:
    meta = None if side.meta is None else result_text.decode(side.meta)
    if isinstance(meta, dict) and set(meta) == {"exc_type", "exc_module", "exc_message"}:
        meta = exception_text.of_parts(meta)
    return {**_common(row, side.state), "result": meta, "traceback": None, "children": [], "date_done": None}


def _of_unfinished(row: Job) -> dict[str, Any]:
    retrying = row.status == Status.WAITING and row.reason in _RETRYING
    state = RETRY if retrying else CELERY_STATES[row.status]
    meta = {**_common(row, state), "result": None, "traceback": None, "children": [], "date_done": None}
    if retrying and row.exception is not None:
        meta.update(result=exception_text.decode(row.exception), traceback=row.traceback or None)
    return meta


def _common(row: Job, state: str) -> dict[str, Any]:
    return {
        "task_id": str(row.pk),
        "status": state,
        "parent_id": row.parent_id and str(row.parent_id),
        # Celery has these with result_extended only.
        "name": row.task,
        "worker": row.worker.partition(" pid ")[0] or None,
        "retries": row.failures,
        "queue": row.queue,
    }


def result_of(row: Job) -> Any:
    """What a settled job returned; or, if it did not succeed, its exception."""
    if row.status == Status.SUCCEEDED:
        return None if row.result is None else result_text.decode(row.result)
    if row.status == Status.CANCELLED:
        return TaskRevokedError(row.error or "revoked")
    if row.status == Status.EXPIRED:
        return JobExpired(row.error or "expired")
    if row.exception is not None:
        return exception_text.decode(row.exception)
    return _BY_REASON.get(row.reason, RuntimeError)(row.error or row.status)


def is_ready(meta: dict[str, Any]) -> bool:
    """Whether an answer is a final one."""
    return meta["status"] in READY_STATES


__all__ = ["FORGOTTEN", "SUCCESS", "answer", "has_answer", "is_ready", "result_of"]
