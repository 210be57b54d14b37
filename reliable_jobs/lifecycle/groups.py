"""The only writer of a group's state: open → done | failed | cancelled, and open again by the requeue of a part; and
the statements that look at its parts.

The row's lock is held by whoever decides a group or requeues one of its parts; the state is the fence.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence

from django.db import connections, transaction
from django.db.models import F, QuerySet

from reliable_jobs.clock import Now
from reliable_jobs.compat.django import locks_no_keys, skips_locked
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.lifecycle.listeners import tell
from reliable_jobs.lifecycle.transition import ERROR_LIMIT, Subject, record
from reliable_jobs.message import debts, result_text
from reliable_jobs.message.row_to_message import ENVELOPE_VERSION
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.status import EventKind, GroupState, Reason, Status
from reliable_jobs.translatable import CANCELLED_BY

EMPTY_ENVELOPE = {"v": ENVELOPE_VERSION, "exchange": "", "routing_key": "", "headers": {}, "properties": {}}
#: Names the row that stands for a body without an id of its own.
_NAMELESS = uuid.UUID("0a4f0b0e-8f0c-5c7e-9a59-3c1a7d1f9d52")

# Statements for sql.rows(), in the words of sql.in_words().

_UNFINISHED = "owes = {owed} AND status IN ('waiting', 'running', 'sent')"

#: How many parts of a group a look counts at most.
COUNTED = 250
_LEFT = f"SELECT 1 FROM {{job}} WHERE {_UNFINISHED.format(owed='%s')} ORDER BY place DESC LIMIT {COUNTED}"
#: How many parts of a group are unfinished. Backwards: the last ones end last.
OWED = f"SELECT count(*) FROM ({_LEFT}) AS unfinished"

#: All that owes a group, in order.
PARTS = """
    SELECT status, id, result, error, place FROM {job} WHERE owes = %s
    UNION ALL SELECT 'waiting', id, NULL, '', place FROM {group} WHERE owes = %s AND state = 'open'
    ORDER BY place
"""

#: Open groups of which no part is unfinished.
UNDECIDED = f"""
    SELECT id FROM {{group}} AS waits
    WHERE state = 'open' AND NOT EXISTS (SELECT 1 FROM {{job}} WHERE {_UNFINISHED.format(owed="waits.id")})
        AND NOT EXISTS (SELECT 1 FROM {{group}} AS inner_one WHERE inner_one.owes = waits.id AND state = 'open')
    LIMIT %s
"""


def lock_open(group_id: uuid.UUID, using: str, *, wait: bool = True) -> JobGroup | None:
    """Lock a group that is open, in a transaction of the caller's.

    Args:
        wait: where another session decides it just now. That one may have looked before the last part ended; a sweeper
            comes again, and need not wait.
    """
    connection = connections[using]
    rows = JobGroup.objects.using(using).filter(pk=group_id, state=GroupState.OPEN)
    return rows.select_for_update(
        skip_locked=skips_locked(connection) and not wait, no_key=locks_no_keys(connection)
    ).first()


def decide(group: JobGroup, using: str, state: str, error: str = "") -> bool:
    """Write what became of an open group. Call it with the row locked."""
    rows = JobGroup.objects.using(using).filter(pk=group.pk, state=GroupState.OPEN)
    return rows.update(state=state, error=clean(error, ERROR_LIMIT), decided_at=Now()) == 1


def reopen_for(ids: Sequence[uuid.UUID], using: str) -> None:
    """Jobs are about to be requeued: lock the groups that wait for them, and open again those that have failed, and
    what failed with them. Call it in the requeue's transaction, before the jobs are locked.

    A group that is done or cancelled stays so: its part runs again, and nothing follows twice. A part that had
    succeeded opens none: the others are as they were.
    """
    owed = Job.objects.using(using).filter(pk__in=ids, owes__isnull=False).order_by().values_list("owes", "status")
    found_parts = [(owes, status) for owes, status in owed if owes is not None]
    wanted = {owes for owes, _ in found_parts}
    opens = {owes for owes, status in found_parts if status != Status.SUCCEEDED}
    seen: set[uuid.UUID] = set()
    while wanted:
        groups = JobGroup.objects.using(using)
        # An open one is written too: who has begun to decide it under REPEATABLE READ is told so by the database.
        found = groups.filter(pk__in=wanted, state__in=[GroupState.OPEN, GroupState.FAILED]).order_by("pk")
        locked = list(found.select_for_update(no_key=locks_no_keys(connections[using])))
        failed = [group for group in locked if group.state == GroupState.FAILED and group.pk in opens]
        written = [group.pk for group in locked if group.state == GroupState.OPEN or group in failed]
        groups.filter(pk__in=written).update(state=GroupState.OPEN, error="", decided_at=None)
        seen |= wanted
        _hold_again(failed, using)
        wanted = opens = {group.owes for group in failed if group.owes is not None} - seen


def _hold_again(groups: Iterable[JobGroup], using: str) -> None:
    """The rows that were written as failed because a part of these groups had failed wait again, until their step is
    written."""
    rows = Job.objects.using(using)
    for group in groups:
        ids = [one for _, one in rows_of_body(group)]
        written = rows.filter(pk__in=ids, reason=Reason.EARLIER_STEP).still(Status.FAILED)
        written.update(
            status=Status.WAITING,
            reason=Reason.NONE,
            due_at=None,
            sends=0,
            check_at=None,
            finished_at=None,
            error="",
            epoch=F("epoch") + 1,
        )
        rows.filter(pk=nameless_id(group), reason=Reason.EARLIER_STEP).update(owes=None)


def cancel_for(ids: Sequence[uuid.UUID], using: str, *, why: str, reason: str) -> list[Subject]:
    """Cancel the groups whose bodies have one of these ids and are not written yet; returns the bodies. The body's row
    says so, and the parts go on. Call it in the cancel's transaction, before jobs are locked."""
    return _cancel_all(JobGroup.objects.using(using).filter(body_id__in=ids), using, why=why, reason=reason)


def cancel_of_workflow(root_id: uuid.UUID, using: str, *, actor: str) -> list[uuid.UUID]:
    """Cancel the open groups of a workflow, in a transaction; returns the ids of their bodies."""
    with transaction.atomic(using=using):
        groups = JobGroup.objects.using(using).filter(root_id=root_id)
        why = clean(CANCELLED_BY % {"actor": actor}, ERROR_LIMIT)
        bodies = _cancel_all(groups, using, why=why, reason=Reason.NONE)
        for body in bodies:
            record(body, using, EventKind.CANCEL, actor, final=True)
        ids = [body.pk for body in bodies]
        tell(ids, using)
        return ids


def _cancel_all(groups: QuerySet[JobGroup], using: str, *, why: str, reason: str) -> list[Subject]:
    done = []
    found = groups.filter(state=GroupState.OPEN).order_by("pk")
    for group in found.select_for_update(no_key=locks_no_keys(connections[using])):
        cancel(group, using, why=why, reason=reason)
        if group.body_id is not None:
            tasks = {job_id: str(one.get("task") or "") for one, job_id in rows_of_body(group)}
            done.append(Subject(group.body_id, tasks.get(group.body_id, "")))
    return done


def cancel(group: JobGroup, using: str, *, why: str, reason: str = Reason.NONE) -> None:
    """The body of a group will not be written; its rows say so. Call it with the group's row locked."""
    if decide(group, using, GroupState.CANCELLED, why):
        ended = dict.fromkeys(job_id for _, job_id in rows_of_body(group))
        written = {
            "status": Status.CANCELLED,
            "reason": reason,
            "error": clean(why, ERROR_LIMIT),
            "finished_at": Now(),
        }
        owed = {"owes": group.owes, "place": group.place}
        rows = Job.objects.using(using)
        rows.bulk_create(
            (
                Job(
                    id=job_id,
                    task=str(one.get("task") or "")[:255],
                    queue="",
                    due_at=Now(),
                    payload=b"[[], {}, {}]",
                    content_type="application/json",
                    content_encoding="utf-8",
                    envelope=json.dumps({**EMPTY_ENVELOPE, "headers": {"task": one.get("task"), "id": str(job_id)}}),
                    root_id=group.root_id,
                    parent_id=group.parent_id,
                    **written,
                    **(owed if job_id == group.body_id else {}),
                )
                for one, job_id in rows_of_body(group)
            ),
            ignore_conflicts=True,
        )
        rows.filter(pk__in=list(ended), due_at=None).still(Status.WAITING).update(**written, epoch=F("epoch") + 1)


def rows_of_body(group: JobGroup) -> list[tuple[dict[str, object], uuid.UUID]]:
    """The single tasks that a group's body leads to, each with the id that its row has or will have."""
    body = result_text.decode(group.body)
    known = ((dict(one), debts.task_id_of(one)) for one in debts.jobs_of(body))
    return [(one, job_id) for one, job_id in known if job_id is not None]


def nameless_id(group: JobGroup) -> uuid.UUID:
    """Of the row that fails for a body whose tasks have no ids."""
    return uuid.uuid5(_NAMELESS, str(group.pk))
