"""Workflows that were cancelled as a whole: nothing of them starts any more.

A cancel can't see the rows that a running part is about to write. So it first commits a row of its own. Each claim
looks at that, and so does whatever writes what follows a job: what begins after the cancel's commit is refused, and
ends cancelled. A requeue of one of the workflow's jobs takes the cancel back.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from typing import Any

from django.db.models import F, Q

from reliable_jobs.clock import Now
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.models import CancelledWorkflow, Job, JobGroup
from reliable_jobs.status import UNFINISHED, GroupState


def root_of(any_id: uuid.UUID, using: str) -> uuid.UUID | None:
    """The root of a workflow by any id of it: of a job, a group or a body. None where nothing has this id: a later step
    of a chain has no row before it is written."""
    jobs, groups = Job.objects.using(using), JobGroup.objects.using(using)
    for found in (jobs.filter(pk=any_id), groups.filter(pk=any_id), groups.filter(body_id=any_id)):
        for (root_id,) in found.values_list("root_id")[:1]:
            return root_id or any_id
    # The root of a group that was called outside of a task is its own id.
    return any_id if jobs.filter(members(any_id)).exists() else None


def members(root_id: uuid.UUID) -> Q:
    """The rows of a workflow. Most jobs are their own roots, and not in the index of roots."""
    return Q(pk=root_id) | (Q(root_id=root_id) & ~Q(root_id=F("id")))


def cancel_from_now(root_id: uuid.UUID, using: str, actor: str) -> None:
    """Nothing of the workflow starts once this has been committed."""
    CancelledWorkflow.objects.using(using).update_or_create(
        root_id=root_id, defaults={"actor": clean(actor, 255)[:255], "over": False, "at": Now()}
    )


def is_cancelled(root_id: uuid.UUID | None, using: str) -> bool:
    """Whether the workflow was cancelled, as far as the open transaction may see."""
    return root_id is not None and CancelledWorkflow.objects.using(using).filter(pk=root_id).exists()


def cancelled_among(root_ids: Collection[Any], using: str) -> set[str]:
    """Those of these roots whose workflows were cancelled."""
    if not root_ids:
        return set()
    found = CancelledWorkflow.objects.using(using).filter(pk__in=list(root_ids))
    return {str(root_id) for root_id in found.values_list("pk", flat=True)}


def allow_again(job_ids: Iterable[uuid.UUID], using: str) -> None:
    """Jobs are being requeued: their workflows go on."""
    roots = Job.objects.using(using).filter(pk__in=list(job_ids)).values("root_id")
    CancelledWorkflow.objects.using(using).filter(root_id__in=roots).delete()


def note_if_over(root_id: uuid.UUID, using: str) -> bool:
    """Whether all of a cancelled workflow has ended; then nobody need look again."""
    unfinished = Job.objects.using(using).filter(members(root_id), status__in=UNFINISHED)
    undecided = JobGroup.objects.using(using).filter(root_id=root_id, state=GroupState.OPEN)
    if unfinished.exists() or undecided.exists():
        return False
    CancelledWorkflow.objects.using(using).filter(pk=root_id).update(over=True)
    return True
