"""The rows that answer for task ids: one SELECT for one id or for many, and no lock."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable

from django.db import DatabaseError

from reliable_jobs import databases
from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.models import Job, JobState

#: Not the payload and the envelope.
_READ = (
    *("id", "task", "queue", "status", "reason", "epoch", "failures", "parent_id", "result", "error", "exception"),
    *("relay_only", "subtasks", "traceback", "worker", "finished_at"),
    *("task_state__job", "task_state__epoch", "task_state__state", "task_state__meta"),
)
#: Ids of one SELECT.
_BATCH = 1000


def find(task_id: str) -> tuple[Job | None, JobState | None]:
    """The job of a Celery task id, and what its function says of itself; (None, None) where there is none."""
    found = find_many([task_id])
    return found.get(task_id, (None, None))


def find_many(task_ids: Iterable[str]) -> dict[str, tuple[Job, JobState | None]]:
    """The same for many ids; those without a row are left out."""
    wanted: dict[uuid.UUID, list[str]] = {}
    for task_id in task_ids:
        wanted.setdefault(foreign_id(task_id), []).append(task_id)
    found: dict[str, tuple[Job, JobState | None]] = {}
    # Not the alias of an open transaction: that one may be on another database than the job.
    for alias in databases.in_order():
        if not wanted:
            break
        ids = list(wanted)
        with contextlib.suppress(DatabaseError):  # another database, or result backend, may still know
            for start in range(0, len(ids), _BATCH):
                rows = Job.objects.using(alias).filter(pk__in=ids[start : start + _BATCH])
                for row in rows.select_related("task_state").only(*_READ):
                    for task_id in wanted.pop(row.pk):
                        found[task_id] = row, getattr(row, "task_state", None)
    return found
