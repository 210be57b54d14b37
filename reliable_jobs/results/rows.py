"""The rows that answer for task ids: one SELECT for one id or for many, and no lock."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError, connections
from django.db.models import BinaryField, Case, F, Q, Value, When

from reliable_jobs import databases
from reliable_jobs.compat.django_transaction import in_transaction
from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.models import Job, JobState
from reliable_jobs.status import Reason, Status

#: Not the payload and the envelope.
_READ = (
    *("id", "task", "queue", "status", "reason", "epoch", "failures", "parent_id", "result", "error", "exception"),
    *("relay_only", "subtasks", "traceback", "worker", "finished_at"),
    *("task_state__job", "task_state__epoch", "task_state__state", "task_state__meta"),
)
#: What the arguments are read from, beside the payload.
_CONTENT = ("content_type", "content_encoding", "envelope")
#: Ids of one SELECT.
_BATCH = 1000
#: Celery's answer for such a job is PENDING, which says nothing of it. Somebody who waits for it asks often.
_SAYS_NOTHING = Q(status=Status.WAITING, reason__in=(Reason.NONE, Reason.REQUEUED), task_state__isnull=True)

Found = dict[str, tuple[Job, JobState | None]]


def find(task_id: str) -> tuple[Job | None, JobState | None]:
    """The job of a Celery task id, and what its function says of itself; (None, None) where there is none, and where
    the database can't be asked."""
    return find_many([task_id])[0].get(task_id, (None, None))


def find_many(task_ids: Iterable[str], *, content: bool = False) -> tuple[Found, DatabaseError | None]:
    """The same for many ids; those without a row are left out.

    Args:
        content: read what holds the arguments, too, of those jobs of which the answer says more than PENDING.

    Returns:
        What was found; and the error of a database that could not be asked and may have the rest.
    """
    wanted: dict[uuid.UUID, list[str]] = {}
    for task_id in task_ids:
        wanted.setdefault(foreign_id(task_id), []).append(task_id)
    found: Found = {}
    trouble: DatabaseError | None = None
    # Not the alias of an open transaction: that one may be on another database than the job.
    for alias in databases.in_order():
        if not wanted:
            break
        try:
            for row in _read(alias, list(wanted), content):
                for task_id in wanted.pop(row.pk):
                    found[task_id] = row, getattr(row, "task_state", None)
        except DatabaseError as error:  # another database, or result backend, may still know
            trouble = error
    return found, trouble if wanted else None


def _read(alias: str, ids: list[uuid.UUID], content: bool) -> Iterator[Job]:
    for start in range(0, len(ids), _BATCH):
        rows = Job.objects.using(alias).filter(pk__in=ids[start : start + _BATCH])
        rows = rows.select_related("task_state").only(*_READ, *(_CONTENT if content else ()))
        if content:
            unless = When(_SAYS_NOTHING, then=Value(None, BinaryField()))
            rows = rows.annotate(read_payload=Case(unless, default=F("payload"), output_field=BinaryField()))
        for row in _asked_again_once(alias, rows):
            if content:
                row.payload = row.read_payload
            yield row


def _asked_again_once(alias: str, rows: Any) -> list[Any]:
    """A connection may have died since it was last used: a script that waits for a job is no request, at whose start
    Django would look."""
    try:
        return list(rows)
    except (OperationalError, InterfaceError):
        if in_transaction(connections[alias]):
            raise
        connections[alias].close()
        return list(rows.all())
