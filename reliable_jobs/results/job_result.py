"""``AsyncResult`` of a reliable task, which ``delay()`` returns: typed, and its ``revoke()`` also cancels the row."""

from __future__ import annotations

import contextlib
import types
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from django.db import DatabaseError

from reliable_jobs import databases, lifecycle
from reliable_jobs.compat.celery_results import AnsweredResult
from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.results.backend import LedgerBackend
from reliable_jobs.status import Reason
from reliable_jobs.task_types import R_co


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
        """Wait for the job to end, and return its result. Looks at its row, often at first and then ever less often.

        Args:
            timeout: seconds to wait at most; None waits without a limit.
            propagate: raise the error of a job that failed. False returns it.
            interval: seconds between two looks at most.
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
        return super().get(timeout, propagate, interval, *args, **kwargs)

    wait = get

    def ledger(self, backend: Any) -> LedgerBackend:
        return LedgerBackend.around(backend, self.app)

    def _refuse_uncommitted(self) -> None:
        for node in (self, *self.ancestors()):
            results = getattr(node, "results", None) or (node,)
            LedgerBackend.around(self.backend, self.app).check_waits(result.id for result in results)

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
