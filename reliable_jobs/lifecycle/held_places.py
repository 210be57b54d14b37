"""Rows that keep a place: a later step of a workflow is written into the row that has its id."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from django.utils.translation import gettext_noop

from reliable_jobs.clock import Now
from reliable_jobs.lifecycle.transition import check_allowed
from reliable_jobs.message.decode import envelope_of
from reliable_jobs.models import Job
from reliable_jobs.status import FINAL, Reason, Status
from reliable_jobs.translatable import Translatable

#: Held for a step, or ended in place of one.
KEEPS_PLACE = (
    Q(status=Status.WAITING, due_at=None)
    | Q(status__in=[Status.FAILED, Status.SENT], reason__in=[Reason.REPLACED, Reason.EARLIER_STEP])
    | Q(status=Status.CANCELLED, reason=Reason.EARLIER_STEP)
)
#: Of a message that has gone its way, or never did: whoever calls the task with that id again wants another one.
GONE = Q(relay_only=True, status__in=[Status.SENT, *FINAL])
_TIMES = ("due_in", "not_before", "check_in", "expires_at", "expires_in")


def hold_place(
    job_id: uuid.UUID,
    using: str,
    *,
    owes: uuid.UUID,
    place: str,
    root_id: uuid.UUID | None,
    parent_id: uuid.UUID | None,
) -> None:
    """Write a row that waits for its step, and for which a group waits meanwhile."""
    held = Job(
        id=job_id,
        task="",
        queue="",
        due_at=None,
        payload=b"[[], {}, {}]",
        content_type="application/json",
        content_encoding="utf-8",
        envelope="{}",
        root_id=root_id,
        parent_id=parent_id,
        owes=owes,
        place=place,
    )
    Job.objects.using(using).bulk_create([held], ignore_conflicts=True)


def why_never_sent(job: Job) -> str:
    """Why a row can't be requeued: it only keeps a place, or nobody can read what its message is to be. An empty text
    for any other."""
    envelope = envelope_of(job)
    if envelope is None:
        return Translatable(
            gettext_noop("its envelope can't be read, so there is no message to send: call the task again")
        )
    if job.queue or envelope.get("exchange"):
        return ""
    if job.reason == Reason.EARLIER_STEP:
        return Translatable(
            gettext_noop(
                "never started, as an earlier step did not succeed: requeue that one, and what follows it comes again"
            )
        )
    if job.status == Status.CANCELLED:
        return Translatable(gettext_noop("cancelled before its step was written: call the workflow again"))
    if job.status == Status.SUCCEEDED:
        return Translatable(gettext_noop("a receipt of work that is no job's"))
    return ""


def take_over(job_id: uuid.UUID, using: str, new: Mapping[str, Any], *, anew: bool = False) -> int:
    """Write a step into the row that has its id: one that is held for it, or that was failed because an earlier step
    had failed. The content version rises, so a message of what the row was before is stale.

    Args:
        new: as a new row has it, by the names of ``enqueue.insert.New``.
        anew: also into a row that was an outbox entry only, and has ended.

    Returns:
        the content version, or 0 where the job of this id is another one, and stays as it is.
    """
    columns = dict(new)
    due_in, not_before, check_in, expires_at, expires_in = (columns.pop(name) for name in _TIMES)
    with transaction.atomic(using=using):
        rows = Job.objects.using(using).filter(pk=job_id)
        job = (
            rows.filter(KEEPS_PLACE | GONE if anew else KEEPS_PLACE)
            .defer("payload", "envelope")
            .lock(wait=True)
            .first()
        )
        if job is None:
            return 0
        check_allowed(job, Status.WAITING)
        if job.owes is not None:  # it has its place among the parts
            del columns["owes"], columns["place"]
        rows.update(
            **columns,
            status=Status.WAITING,
            reason=Reason.NONE,
            epoch=F("epoch") + 1,
            content_version=F("content_version") + 1,
            due_at=not_before if not_before is not None else _from_now(due_in),
            check_at=None if check_in is None else _from_now(check_in),
            expires_at=expires_at if expires_in is None else _from_now(expires_in),
            failures=0,
            crashes=0,
            interruptions=0,
            started_at=None,
            run_started_at=None,
            release="",
            error_class="",
            finished_at=None,
            deadline_at=None,
            error="",
            traceback="",
            result=None,
        )
        return job.content_version + 1


def _from_now(seconds: float) -> Any:
    return Now() + datetime.timedelta(seconds=seconds)
