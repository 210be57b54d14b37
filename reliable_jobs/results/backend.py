"""Celery's result backend whose answers are the rows: around the one that the project has configured, or alone.

    CELERY_RESULT_BACKEND = "reliable_jobs.results:LedgerBackend+redis://…"

Then the results of reliable tasks are in their rows alone, and those of plain tasks in the other backend. A project
that has configured another backend gets this one around it all the same. What reads that other one directly (the admin
of django-celery-results, a dashboard) keeps its results: each transition of a job brings them in line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from celery import current_task
from celery.app.task import Context
from celery.exceptions import BackendGetMetaError, SoftTimeLimitExceeded
from celery.states import EXCEPTION_STATES, PENDING, READY_STATES, STARTED, SUCCESS

from reliable_jobs.compat.celery_backend import AnsweringBackend, can_be_read
from reliable_jobs.compat.celery_results import stored_result
from reliable_jobs.dispatch.on_commit import is_uncommitted
from reliable_jobs.errors import NotCommitted
from reliable_jobs.logs import job_logger
from reliable_jobs.message import exception_text, result_text
from reliable_jobs.message.decode import headers_of
from reliable_jobs.message.row_to_message import HEADER, foreign_id
from reliable_jobs.models import Job
from reliable_jobs.results import arguments, groups, rows, states
from reliable_jobs.results.answer import FORGOTTEN, answer, has_answer
from reliable_jobs.results.waiting import Pauses
from reliable_jobs.workflow.chord_backend import ChordBackend

if TYPE_CHECKING:
    from celery import Celery

logger = job_logger(__name__)


class LedgerBackend(ChordBackend, AnsweringBackend):
    """See the module. Nobody calls it: ``AsyncResult`` and Celery do.

    Args:
        app: the Celery app.
        url: of the backend for plain tasks, None for none.
        wrapped: that backend itself, where the project has configured it without this one.
    """

    app: Celery

    # --- reading ------------------------------------------------------------------------------------------------------

    def meta_of(self, task_id: str) -> dict[str, Any]:
        return self.metas_of([task_id])[task_id]

    def metas_of(self, task_ids: list[str]) -> dict[str, dict[str, Any]]:
        extended = bool(self.app.conf.result_extended)
        found, trouble = rows.find_many(task_ids, content=extended)
        metas: dict[str, dict[str, Any]] = {}
        for task_id in task_ids:
            row, side = found.get(task_id, (None, None))
            if row is not None and has_answer(row):
                metas[task_id] = {**answer(row, side, None), "task_id": task_id}
                if extended:
                    metas[task_id].update(arguments.of_row(row, self.app))
                continue
            wrapped = stored_result(self.wrapped, task_id)
            if row is None and trouble is not None and wrapped.get("status", PENDING) == PENDING:
                # PENDING would be a guess: somebody would wait for a job that has ended.
                raise BackendGetMetaError(f"its row can't be read: {trouble}", task_id=task_id) from trouble
            metas[task_id] = {**answer(row, side, wrapped), "task_id": task_id}
        return metas

    def are_elsewhere(self, task_ids: list[str]) -> bool:
        found, trouble = rows.find_many(task_ids)
        return trouble is None and not any(has_answer(row) for row, _ in found.values())

    def pauses(
        self, timeout: float | None, interval: float | None, on_interval: Callable[[], Any] | None
    ) -> Callable[[], None]:
        return Pauses(timeout, interval, on_interval)

    def check_waits(self, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            if is_uncommitted(task_id):
                raise NotCommitted(
                    f"Job {task_id} was enqueued in the transaction that is open here. No worker sees it before the "
                    "commit, so get() would wait for ever. Call get() after the transaction; or enqueue with "
                    "transactional=False."
                )

    # --- writing ------------------------------------------------------------------------------------------------------

    def is_own(self, task_id: str, request: Any) -> bool:
        if getattr(request, "is_eager", False):
            return False  # it has no row: with task_store_eager_result it is the other backend's
        if getattr(request, "id", task_id) == task_id:
            task = self.app.tasks.get(getattr(request, "task", None) or "")
            if task is not None:
                return bool(getattr(task, "writes_outbox", False))
            if request is not None and isinstance(getattr(request, HEADER, None), dict):
                return True
        # Nothing is known of the task, or it is another one's: update_state(task_id=…).
        row, _ = rows.find(task_id)
        return row is not None and not row.relay_only

    def has_said(self, task_id: str, state: str, meta: Any, request: Any) -> None:
        if state in EXCEPTION_STATES and isinstance(meta, BaseException):
            text: str | None = exception_text.encode(meta)
        else:
            text = None if meta is None else result_text.encode(meta, self.app.conf.result_serializer)
        states.say(foreign_id(task_id), state, text, weak=state == STARTED)
        if state not in READY_STATES and self.is_copied:
            self.copy(task_id, {"status": state, "result": meta, "traceback": None}, request)
            self._align_if_ended(task_id, request)

    def has_ended(self, task_id: str, state: str, value: Any, request: Any) -> None:
        """The row knows already. A backend that others read is told what the row says, not what the tracer does."""
        if request is not None and not current_task:
            return  # in the worker's parent process: what happens to the row is told by lifecycle/listeners.py
        if state != SUCCESS:
            self.align(task_id, request)
        elif self.is_copied:
            self.copy(task_id, {"status": state, "result": value, "traceback": None}, request)

    def align(self, task_id: str, request: Any = None) -> None:
        """Bring the backend that the project has configured in line with the row. Never raises: the row is right."""
        if self.is_copied:
            row, side = rows.find(task_id)
            if row is not None and has_answer(row):
                self.copy(task_id, answer(row, side, None), request or request_of(row))
                if not row.is_final:  # of one that is, the answer may yet be PENDING (forgotten), or the task's own
                    self._align_if_ended(task_id, request)

    def _align_if_ended(self, task_id: str, request: Any) -> None:
        """After a state that is not the last was copied. Another process may have settled the job meanwhile, and told
        the other backend so before this one's write: the last to write looks again."""
        row, _ = rows.find(task_id)
        if row is not None and row.is_final:
            self.align(task_id, request)

    @functools.cached_property
    def is_copied(self) -> bool:
        """Whether another backend has the results of reliable tasks, too, for those that read that one."""
        return self.implicit and can_be_read(self.wrapped)

    def copy(self, task_id: str, meta: dict[str, Any], request: Any) -> bool:
        """Write an answer to the other backend; returns whether that went well."""
        try:
            if meta["status"] not in READY_STATES and stored_result(self.wrapped, task_id).get("status") == SUCCESS:
                self.wrapped.forget(task_id)  # some never replace a success
            self.store_copy(task_id, meta["result"], meta["status"], meta.get("traceback"), request)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # a backend may raise anything
            logger.warning("Job %s: the result backend could not be brought in line: %s", task_id, error)
            return False
        return True

    def forget_own(self, task_id: str) -> bool:
        row, _ = rows.find(task_id)
        if row is None or not has_answer(row):
            return False
        if row.is_final and states.forget(row.pk, FORGOTTEN):
            forgotten = Job.objects.using(row._state.db).filter(pk=row.pk, epoch=row.epoch)
            forgotten.update(result=None, exception=None, subtasks=None)
        return True

    keep_group = staticmethod(groups.keep)
    kept_group = staticmethod(groups.find)
    drop_group = staticmethod(groups.drop)


def request_of(row: Job) -> Any:
    """What a backend shows of a task beside its result: its name, worker and arguments."""
    return Context({"id": str(row.pk), "task": row.task, **headers_of(row), "hostname": row.worker or None})
