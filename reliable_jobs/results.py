"""``AsyncResult`` of a reliable task: the row answers first, the result backend is its cache.

A worker that died between its commit and the store left PENDING in the backend for ever; a late duplicate overwrote
FAILURE with STARTED. A settled row can't be contradicted.
"""

from __future__ import annotations

import contextlib
from typing import Any

from celery.result import AsyncResult
from celery.states import READY_STATES
from django.db import DatabaseError

from reliable_jobs import databases, lifecycle
from reliable_jobs.delivery import result_of
from reliable_jobs.models import Job
from reliable_jobs.receipts import foreign_id
from reliable_jobs.status import CELERY_STATES, Reason


class JobResult(AsyncResult):
    """The usual ``AsyncResult``; ``revoke()`` also cancels the waiting row."""

    def _get_task_meta(self) -> dict[str, Any]:
        # Private in Celery: every reader (state, result, get, ready) goes through it. Pinned by tests/test_results.py.
        if self._cache is not None:
            return self._cache
        job = self._job()
        if job is None:
            return super()._get_task_meta()
        state = CELERY_STATES[job.status]
        try:
            kept = dict(self.backend.get_task_meta(self.id))
        except (AttributeError, NotImplementedError):  # no result backend
            kept = {}
        if not job.is_final:
            # The end of an earlier life: it was requeued since, or waits for a worker that has its code.
            gone = not kept or kept.get("status") in READY_STATES
            return {"task_id": self.id, "status": state, "result": None} if gone else kept
        if kept.get("status") == state:
            return self._maybe_set_cache(kept)
        return self._maybe_set_cache(
            {
                "task_id": self.id,
                "status": state,
                "result": result_of(job),
                "traceback": job.traceback or None,
                "children": kept.get("children") or [],
                "date_done": job.finished_at,
            }
        )

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Celery's ``get()``, which asks the backend only; what the row knows already is taken from there."""
        self._get_task_meta()
        return super().get(*args, **kwargs)

    def _job(self) -> Job | None:
        # Not the alias of an open transaction: that one may be on another database than the job.
        for alias in databases.in_order():
            with contextlib.suppress(DatabaseError):  # the backend may still know
                job = lifecycle.find(foreign_id(self.id), alias)
                if job is not None:
                    return job
        return None

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """Cancel the job if it waits, and tell the workers (``terminate=True`` also ends a running body).

        Raises:
            django.db.Error: the row could not be reached; nothing was revoked.
        """
        usual, *others = databases.aliases()
        lifecycle.cancel([foreign_id(self.id)], usual, actor="revoke", reason=Reason.REVOKED)
        for alias in others:
            with contextlib.suppress(DatabaseError):  # the job is probably in the usual one
                lifecycle.cancel([foreign_id(self.id)], alias, actor="revoke", reason=Reason.REVOKED)
        super().revoke(*args, **kwargs)
