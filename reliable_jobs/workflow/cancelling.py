"""Cancelling a whole workflow, also while parts of it run; lifecycle/workflows.py says how that is kept."""

from __future__ import annotations

import uuid

from reliable_jobs import lifecycle
from reliable_jobs.lifecycle import Report, groups, workflows
from reliable_jobs.message import debts
from reliable_jobs.message.row_to_message import as_uuid
from reliable_jobs.models import CancelledWorkflow, Job
from reliable_jobs.status import UNFINISHED, Status
from reliable_jobs.translatable import WORKFLOW_CANCELLED
from reliable_jobs.workflow.following import Ended, Following

#: Rows of a workflow that one transaction cancels.
BATCH = 1000
#: Cancelled workflows that one sweep looks after.
LIMIT = 100


def cancel_steps(ended: Ended, following: Following, why: str) -> None:
    """Write the later steps of a job's chain as cancelled, in the open transaction."""
    steps = [step for signature in reversed(following.chain) for step in debts.jobs_of(signature)]
    if steps:
        lifecycle.end_steps(
            steps,
            ended.using,
            status=Status.CANCELLED,
            parent_id=ended.job_id,
            root_id=as_uuid(ended.root),
            error=why,
            is_reliable=lambda name: getattr(ended.app.tasks.get(name), "writes_outbox", False),
        )


def cancel_workflow(any_id: uuid.UUID, using: str, *, actor: str) -> Report:
    """Cancel all of a workflow that has not ended: jobs that wait, open groups with their bodies, and what running
    parts would still start. Running ones are skipped.

    Args:
        any_id: of the workflow: of its root, or of any job, group or body in it.
        actor: who asks, for the history.

    Raises:
        Job.DoesNotExist: nothing has this id.
        django.db.Error: the sweep goes on with the rest, if it was noted at all.
    """
    root_id = workflows.root_of(any_id, using)
    if root_id is None:
        raise Job.DoesNotExist(
            f"No job, group or body has the id {any_id}. A later step of a chain is written when it is its turn: name "
            "the first step, or give cancel_workflow() the result."
        )
    workflows.cancel_from_now(root_id, using, actor)
    return _end(root_id, using, actor)


def stops(ended: Ended) -> str | None:
    """Why nothing is to follow a job whose workflow was cancelled while it ran; None otherwise."""
    if not workflows.is_cancelled(as_uuid(ended.root), ended.using):
        return None
    return WORKFLOW_CANCELLED % {"id": ended.root}


def sweep(using: str) -> int:
    """Cancel what has come to wait in cancelled workflows since. Returns how many rows."""
    cancelled = 0
    for workflow in CancelledWorkflow.objects.using(using).filter(over=False)[:LIMIT]:
        cancelled += len(_end(workflow.root_id, using, workflow.actor).done)
        workflows.note_if_over(workflow.root_id, using)
    return cancelled


def _end(root_id: uuid.UUID, using: str, actor: str) -> Report:
    total = Report(done=groups.cancel_of_workflow(root_id, using, actor=actor))
    rows = Job.objects.using(using).filter(workflows.members(root_id), status__in=UNFINISHED).order_by("pk")
    ids = list(rows.values_list("pk", flat=True)[:BATCH])
    while ids:
        total.add(lifecycle.cancel(ids, using, actor=actor))
        ids = list(rows.filter(pk__gt=ids[-1]).values_list("pk", flat=True)[:BATCH])
    return total
