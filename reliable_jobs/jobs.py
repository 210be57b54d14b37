"""What code may do to jobs, as the admin and the management commands do it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from django.db.models import QuerySet

from reliable_jobs import lifecycle
from reliable_jobs.databases import write_alias
from reliable_jobs.lifecycle import Report
from reliable_jobs.models import Job
from reliable_jobs.sweep.ensure_jobs import ensure_jobs

__all__ = ["Report", "cancel", "ensure_jobs", "get", "requeue"]


def get(job_id: uuid.UUID | str, *, using: str | None = None) -> Job:
    """The row of a job: its status, result, error and times.

    Args:
        job_id: the id that ``delay()`` returned.
        using: the database that holds it; by default the one that a call would write to now.

    Raises:
        Job.DoesNotExist: there is none, or it has been pruned.

    Example::

        jobs.get(send_receipt.delay(order.pk).id).status
    """
    return Job.objects.using(using or write_alias()).get(pk=job_id)


def requeue(
    jobs: QuerySet[Job] | Iterable[uuid.UUID | str], *, actor: str, queue: str | None = None, using: str | None = None
) -> Report:
    """Run jobs again: settled ones start anew, waiting ones become due now. Running ones are skipped.

    Args:
        jobs: a queryset of ``Job``, or ids.
        actor: who asks, for the history.
        queue: send them to this queue instead of the one they had.
        using: the database of the ids; by default the one that a call would write to now.

    Returns:
        ``done``: the ids that were requeued; ``skipped``: why, by id.

    Raises:
        django.db.Error: they are requeued a thousand at a time, and those before the failing thousand are.

    Example::

        jobs.requeue(Job.objects.filter(task="mail.send", status="failed"), actor="ada")
    """
    return lifecycle.requeue(*_ids(jobs, using), actor=actor, queue=queue)


def cancel(jobs: QuerySet[Job] | Iterable[uuid.UUID | str], *, actor: str, using: str | None = None) -> Report:
    """Settle waiting jobs as cancelled. Running ones are skipped.

    Args:
        jobs: a queryset of ``Job``, or ids.
        actor: who asks, for the history.
        using: the database of the ids; by default the one that a call would write to now.

    Returns and raises: as :func:`requeue`.

    Example::

        jobs.cancel(Job.objects.filter(queue="reports", status="waiting"), actor="ada")
    """
    return lifecycle.cancel(*_ids(jobs, using), actor=actor)


def _ids(jobs: QuerySet[Job] | Iterable[uuid.UUID | str], using: str | None) -> tuple[list[uuid.UUID], str]:
    if isinstance(jobs, QuerySet):
        return list(jobs.values_list("pk", flat=True)), using or jobs.db
    return [uuid.UUID(str(one)) for one in jobs], using or write_alias()
