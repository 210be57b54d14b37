"""Queues and tasks that a person has paused: no claim of their jobs succeeds once the pause has committed.

Every claim looks (sql.py, ``_PAUSED_BY``); that alone keeps the promise. The rest saves work:

- A refused claim leaves the row waiting without a message.
- The sweep skips paused queues.
- A paused task has no queue to skip: each tick would find its due rows again. So their due time is put an hour ahead,
  and brought back when the task is resumed.

Expiry and retry windows go on under a pause.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import TypeVar

from django.db import connections, transaction
from django.db.models import Exists, OuterRef

from reliable_jobs.clock import Now
from reliable_jobs.compat.django import locks_no_keys
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.lifecycle.transition import ERROR_LIMIT
from reliable_jobs.message.row_to_message import RowToSend
from reliable_jobs.models import Job, Pause, PauseKind
from reliable_jobs.status import Status

#: How far ahead a due row of a paused task is put, at each time that it comes up.
AHEAD = datetime.timedelta(hours=1)
_BATCH = 1000
_Row = TypeVar("_Row", Job, RowToSend)


def pause(kind: str, name: str, using: str, *, actor: str, why: str = "") -> Pause:
    """Let no job of a queue or a task start from the commit on. What runs goes on. Pausing again changes the reason."""
    made, _ = Pause.objects.using(using).update_or_create(
        kind=PauseKind(kind),
        name=name,
        defaults={"actor": clean(actor, 255)[:255], "why": clean(why, ERROR_LIMIT), "at": Now()},
    )
    made.refresh_from_db(using=using)
    return made


def resume(kind: str, name: str, using: str) -> bool:
    """Let the jobs start again; says whether it was paused."""
    deleted, _ = Pause.objects.using(using).filter(kind=PauseKind(kind), name=name).delete()
    if deleted and kind == PauseKind.TASK:
        bring_back(using)
    return bool(deleted)


def bring_back(using: str) -> None:
    """Some of the rows that were put ahead and whose tasks are paused no longer: due now. The sweep calls it at each
    round, for those that a resume leaves and those that were locked meanwhile."""
    still = Pause.objects.using(using).filter(kind=PauseKind.TASK, name=OuterRef("task"))
    ahead = Job.objects.using(using).filter(~Exists(still), status=Status.WAITING, paused_at__isnull=False)
    if not (ids := list(ahead.values_list("pk", flat=True)[:_BATCH])):
        return
    with transaction.atomic(using=using):
        locked = list(ahead.filter(pk__in=ids).lock().values_list("pk", flat=True))
        ahead.filter(pk__in=locked).update(paused_at=None, due_at=Now())


def paused(using: str, kind: str = "") -> list[Pause]:
    """What is paused, the latest first."""
    rows = Pause.objects.using(using).order_by("-at", "-pk")
    return list(rows.filter(kind=kind) if kind else rows)


def put_back(job_id: uuid.UUID, kind: str, using: str) -> None:
    """A claim was refused because of a pause: the row waits without a message. Writes no event."""
    with transaction.atomic(using=using):
        # Not one that keeps the place of a step: it would begin the job anew.
        rows = Job.objects.using(using).filter(pk=job_id, due_at__isnull=False).still(Status.WAITING)
        job = rows.defer("payload").lock().first()
        if job is None:
            return
        Job.objects.using(using).filter(pk=job_id).update(sends=0, check_at=None)
        if kind == PauseKind.TASK:
            put_off([job], using)


def put_off(jobs: Sequence[_Row], using: str) -> list[_Row]:
    """Put those ahead whose tasks are paused; returns the others. Call it in the transaction that has locked the rows.

    The pause is locked meanwhile: a resume waits for it, and then brings these rows back too.
    """
    by_task = Pause.objects.using(using).filter(kind=PauseKind.TASK, name__in={job.task for job in jobs})
    locked = by_task.select_for_update(no_key=locks_no_keys(connections[using]))
    tasks = set(locked.values_list("name", flat=True)) if by_task.exists() else set()
    ids = [job.pk for job in jobs if job.task in tasks]
    if ids:
        Job.objects.using(using).filter(pk__in=ids).still(Status.WAITING).update(
            sends=0, check_at=None, due_at=Now() + AHEAD, paused_at=Now()
        )
    return [job for job in jobs if job.task not in tasks]
