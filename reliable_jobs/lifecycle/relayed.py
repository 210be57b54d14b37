"""Rows of messages whose task is not a reliable one: they end when the broker has confirmed the message."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Mapping

from django.db import transaction
from django.db.models import Case, F, Q, When

from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.lifecycle.transition import ERROR_LIMIT, record, transition
from reliable_jobs.models import Job
from reliable_jobs.status import EventKind, Reason, Status

_AT_MOST = datetime.timedelta(hours=1)


def mark_sent(ids: Iterable[uuid.UUID], using: str) -> int:
    """The broker has confirmed these messages. A row that this does not reach is published again: at least once.

    Returns:
        how many rows have become ``sent``.
    """
    with transaction.atomic(using=using):
        rows = Job.objects.using(using)
        waiting = rows.filter(pk__in=list(ids), relay_only=True).still(Status.WAITING)
        locked = list(waiting.lock().values_list("pk", flat=True))
        # Its finished_at is when it was sent: the pruner goes by it.
        return rows.filter(pk__in=locked).update(
            status=Status.SENT,
            epoch=F("epoch") + 1,
            finished_at=Now(),
            check_at=Case(When(owes__isnull=False, then=Now() + datetime.timedelta(seconds=settings.GRACE))),
        )


def fail_unsendable(why: Mapping[uuid.UUID, str], using: str, *, actor: str) -> int:
    """No queue takes these messages, or they can't be read: no worker will say so later, so the row does now.

    Returns:
        how many rows have become ``failed``.
    """
    with transaction.atomic(using=using):
        rows = Job.objects.using(using).filter(pk__in=list(why), relay_only=True).still(Status.WAITING)
        failed = 0
        for job in rows.defer("payload", "envelope").lock():
            error = clean(why[job.pk], ERROR_LIMIT)
            if transition(job, using, Status.FAILED, reason=Reason.UNROUTABLE, error=error):
                record(job, using, EventKind.UNROUTABLE, actor, error, final=True)
                failed += 1
    return failed


def report(job_id: uuid.UUID, using: str, *, status: str, result: str | None, error: str) -> uuid.UUID | None:
    """A plain task that is a part of a chord of ours has ended, as its worker says. Returns the group that its row
    owes; None where no row of it waits for that."""
    with transaction.atomic(using=using):
        rows = (
            Job.objects.using(using)
            .filter(pk=job_id, owes__isnull=False)
            .filter(Q(relay_only=True) | Q(due_at=None), status__in=[Status.WAITING, Status.SENT])
        )
        owes = rows.lock(wait=True).values_list("owes", flat=True).first()
        rows.update(
            status=status,
            result=result,
            error=clean(error, ERROR_LIMIT),
            epoch=F("epoch") + 1,
            check_at=None,
            finished_at=Now(),
        )
        return owes


def take_unreported(using: str, limit: int) -> list[Job]:
    """Rows that were sent and for which a group waits, and whose workers have said nothing for a while. Each is given
    out again after as long as it has been out already, an hour at most."""
    with transaction.atomic(using=using):
        rows = Job.objects.using(using)
        out = rows.filter(status=Status.SENT, owes__isnull=False, check_at__lte=Now()).order_by("check_at")
        taken = list(out.defer("payload").annotate(now=Now()).lock()[:limit])
        for job in taken:
            waited = job.now - job.finished_at if job.finished_at else _AT_MOST  # type: ignore[attr-defined]
            rows.filter(pk=job.pk).update(check_at=Now() + min(waited, _AT_MOST))
    return taken


def take_in(job_id: uuid.UUID, using: str) -> bool:
    """The message has come to a worker in which its task is a reliable one (it was adopted since): from here on the row
    is an ordinary job."""
    with transaction.atomic(using=using):
        rows = Job.objects.using(using).filter(pk=job_id, relay_only=True, status__in=[Status.WAITING, Status.SENT])
        job = rows.lock().first()
        return job is not None and transition(
            job, using, Status.WAITING, relay_only=False, finished_at=None, due_at=Now(), sends=1
        )
