"""What is written where a group has failed: its body, and what is chained behind it, end as failed rows.

Whoever waits for one of them hears of it, a person or another group. The body's errbacks are called once.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from celery import Celery
from celery.exceptions import ChordError

from reliable_jobs import lifecycle
from reliable_jobs.enqueue import announced, owing
from reliable_jobs.lifecycle import db_errors, groups
from reliable_jobs.message import debts, exception_text
from reliable_jobs.message.row_to_message import as_uuid
from reliable_jobs.models import JobGroup
from reliable_jobs.workflow import followups
from reliable_jobs.workflow.following import Ended, Following


def fail_body(app: Celery, group: JobGroup, body: Mapping[str, Any], why: str, using: str) -> None:
    """Write the rows of a body that is not started, and its errbacks, in the open transaction.

    Args:
        why: for the rows.
    """
    lineage = {"root_id": group.root_id, "parent_id": group.parent_id, "priority": group.priority}
    owing_rows = 0

    def owed_by(step: Mapping[str, Any]) -> tuple[uuid.UUID | None, str]:
        nonlocal owing_rows
        debt = debts.of_signature(step)
        if debt is None or not announced.is_ours(debt):
            return None, ""
        owing_rows += debt.group_id == group.owes
        return owing.take(debt, using, lineage)

    steps = list(debts.jobs_of(body))
    _write(app, group, steps, why, using, owed_by)
    if group.owes is not None and not owing_rows:
        # Else the group that waits for this one would miss a part, and not know it.
        nameless = {"task": body.get("task"), "options": {"task_id": str(groups.nameless_id(group))}}
        _write(app, group, [nameless], why, using, lambda step: (group.owes, group.place))
    for task_id, errbacks in _errbacks(body):
        if not errbacks:
            continue
        ended = Ended(app, using, uuid.UUID(task_id), task_id, str(group.root_id or ""), "", group.priority)
        followups.after_failure(ended, Following(errbacks=errbacks), ChordError(why), "")


def _write(app: Celery, group: JobGroup, steps: list[Any], why: str, using: str, owed_by: Any) -> None:
    lifecycle.end_steps(
        steps,
        using,
        parent_id=group.parent_id,
        root_id=group.root_id,
        error=why,
        exception=exception_text.encode(ChordError(why)),
        error_class=db_errors.class_of(ChordError),
        is_reliable=lambda name: getattr(app.tasks.get(name), "writes_outbox", False),
        owed_by=owed_by,
    )


def _errbacks(body: Mapping[str, Any]) -> list[tuple[str, tuple[Any, ...]]]:
    """The errbacks of a body, by the ids of the tasks for which they are called: those of a group's tasks each, as
    Celery has it, and the group's own for each of them."""
    linked = (body.get("options") or {}).get("link_error") or ()
    own = (linked,) if isinstance(linked, Mapping) else tuple(linked)  # set() takes a single one as it is
    inside = body.get("kwargs") or {}
    if body.get("subtask_type") == "group":
        found = [
            (task_id, (*theirs, *own)) for task in inside.get("tasks") or () for task_id, theirs in _errbacks(task)
        ]
    elif body.get("subtask_type") == "chord" and inside.get("body"):
        found = [(task_id, (*own, *theirs)) for task_id, theirs in _errbacks(inside["body"])]
    else:
        task_id = debts.result_id(body)
        found = [] if task_id is None or as_uuid(task_id) is None else [(task_id, own)]
    # Linking to a group puts the same one on its tasks and on itself.
    return [(task_id, tuple(_distinct(errbacks))) for task_id, errbacks in found]


def _distinct(errbacks: tuple[Any, ...]) -> list[Any]:
    kept: list[Any] = []
    for errback in errbacks:
        if errback not in kept:
            kept.append(errback)
    return kept
