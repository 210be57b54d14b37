"""``AsyncResult`` of a reliable task: the row answers first, the result backend is its cache.

A worker that died between its commit and the store left PENDING in the backend for ever; a late duplicate overwrote
FAILURE with STARTED. A settled row can't be contradicted.
"""

from __future__ import annotations

import contextlib
import time
import types
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from celery.exceptions import TimeoutError
from celery.states import READY_STATES
from django.db import DatabaseError

from reliable_jobs import databases, lifecycle
from reliable_jobs.compat.celery_results import (
    AnsweredResult,
    reads_results_from_a_queue,
    refuses_to_wait,
    stored_result,
)
from reliable_jobs.dispatch.on_commit import is_uncommitted
from reliable_jobs.errors import NotCommitted
from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.models import Job
from reliable_jobs.protocols import R_co
from reliable_jobs.run.delivery import result_of
from reliable_jobs.status import CELERY_STATES, Reason


class JobResult(AnsweredResult, Generic[R_co]):
    """The usual ``AsyncResult``, which ``delay()`` returns; ``revoke()`` also cancels the waiting row."""

    #: ``JobResult[R]`` at run time, as in newer versions of Celery. It says nothing there.
    __class_getitem__: Any = classmethod(types.GenericAlias)

    if TYPE_CHECKING:
        # Celery's, for those who have no types of it.
        id: str

        @property
        def state(self) -> str: ...

        @property
        def status(self) -> str: ...

        def ready(self) -> bool: ...

        def successful(self) -> bool: ...

        def failed(self) -> bool: ...

    def answer(self) -> dict[str, Any] | None:
        job = self._job()
        if job is None:
            return None
        state = CELERY_STATES[job.status]
        kept = self._kept()
        if not job.is_final:
            # The end of an earlier life: it was requeued since, or waits for a worker that has its code.
            gone = not kept or kept.get("status") in READY_STATES
            return {"task_id": self.id, "status": state, "result": None} if gone else kept
        if kept.get("status") == state:
            return kept
        return {
            "task_id": self.id,
            "status": state,
            "result": result_of(job),
            "traceback": job.traceback or None,
            "children": kept.get("children") or [],
            "date_done": job.finished_at,
        }

    def _kept(self) -> dict[str, Any]:
        """What the result backend knows; {} where there is none, or where it would read from a queue."""
        return {} if reads_results_from_a_queue(self.backend) else stored_result(self.backend, self.id)

    @overload
    def get(
        self,
        timeout: float | None = None,
        propagate: Literal[True] = True,
        interval: float = 0.5,
        *args: Any,
        **kwargs: Any,
    ) -> R_co: ...

    # Without propagate it may be the error.
    @overload
    def get(
        self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5, *args: Any, **kwargs: Any
    ) -> Any: ...

    def get(
        self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5, *args: Any, **kwargs: Any
    ) -> Any:
        """Celery's ``get()``, which asks the backend only; what the row knows already is taken from there.

        Args:
            timeout: seconds to wait at most; None waits without a limit.
            propagate: raise the error of a job that failed. False returns it.
            interval: seconds between two looks.
            args, kwargs: Celery's others.

        Returns:
            What the task function returned.

        Raises:
            NotCommitted: the job was enqueued in a transaction that is still open here.
            celery.exceptions.TimeoutError: no result after ``timeout`` seconds.
            Exception: the job's own, with ``propagate``.

        Example::

            send_receipt.AsyncResult(str(done.pk)).get(timeout=10)
        """
        if not self.ignored and not self.is_known():
            self._refuse_uncommitted()
            if reads_results_from_a_queue(self.backend) and not refuses_to_wait():
                timeout = self._wait_for_row(timeout, interval)
        return super().get(timeout, propagate, interval, *args, **kwargs)

    wait = get

    @property
    def supports_native_join(self) -> bool:
        """False: a group that waits for its jobs asks each of them, and so the rows."""
        return False

    def _refuse_uncommitted(self) -> None:
        for node in (self, *self.ancestors()):
            for result in getattr(node, "results", None) or (node,):
                if is_uncommitted(result.id):
                    raise NotCommitted(
                        f"Job {result.id} was enqueued in the transaction that is open here. No worker sees it before "
                        "the commit, so get() would wait for ever. Call get() after the transaction; or enqueue with "
                        "transactional=False."
                    )

    def _wait_for_row(self, timeout: float | None, interval: float) -> float | None:
        """With ``rpc://`` a result is a message to the caller's reply queue, which nobody has declared."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (job := self._job()) is not None and not job.is_final:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("The operation timed out.")
            time.sleep(interval)
        self.is_known()
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _job(self) -> Job | None:
        # Not the alias of an open transaction: that one may be on another database than the job.
        for alias in databases.in_order():
            with contextlib.suppress(DatabaseError):  # the backend may still know
                job = Job.objects.using(alias).find(foreign_id(self.id))
                if job is not None:
                    return job
        return None

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """Cancel the job if it waits, and tell the workers (``terminate=True`` also ends a running task function).

        Args:
            args, kwargs: as Celery's ``revoke()`` takes them: ``terminate``, ``signal`` …

        Raises:
            django.db.Error: the row could not be reached; nothing was revoked.

        Example::

            send_receipt.AsyncResult(str(job.pk)).revoke()
        """
        usual, *others = databases.aliases()
        lifecycle.cancel([foreign_id(self.id)], usual, actor="revoke", reason=Reason.REVOKED)
        for alias in others:
            with contextlib.suppress(DatabaseError):  # the job is probably in the usual one
                lifecycle.cancel([foreign_id(self.id)], alias, actor="revoke", reason=Reason.REVOKED)
        super().revoke(*args, **kwargs)
