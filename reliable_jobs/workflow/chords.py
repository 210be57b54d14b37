"""Chords: whether all that a group waits for has ended, and what follows then.

At each commit a group has ended exactly if no row that owes it is unfinished, and no open group does. So nothing is
counted: after the commit that ends a part, :func:`part_ended` looks whether anything is left, and decides the group in
a transaction of its own. Of two last parts at least one sees nothing left. Within their transactions neither would. A
process that dies in between leaves it to :func:`sweep`.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from celery import Celery, Signature, signature
from celery.exceptions import SoftTimeLimitExceeded
from django.db import Error as DatabaseError
from django.db import connections, transaction

from reliable_jobs.compat.django_transaction import in_transaction
from reliable_jobs.enqueue import owing
from reliable_jobs.lifecycle import db_errors, groups, sql, workflows
from reliable_jobs.message import result_text
from reliable_jobs.status import OPEN, GroupState, Status
from reliable_jobs.translatable import WORKFLOW_CANCELLED
from reliable_jobs.workflow import failing, looks
from reliable_jobs.workflow.unit import unit_of_work

logger = logging.getLogger(__name__)

#: The option of a chord's body that holds what :func:`on_finished` was given.
FINISHED = "reliable_jobs_finished"
#: Groups that one sweep decides.
LIMIT = 500


class Part(NamedTuple):
    """A row that owes a group at its end; or a group that does."""

    status: str
    id: uuid.UUID
    result: str | None
    error: str
    place: str


def part_ended(app: Celery, group_id: uuid.UUID, using: str, *, left: int | None = None) -> None:
    """A row that owes the group has ended, and its transaction has committed. Decides the group if nothing is left.

    Whatever goes wrong is logged, and left to the sweep: the job itself has ended.

    Args:
        left: how many rows a look after that commit has found unfinished; None where nobody has looked.
    """
    try:
        if left is not None:
            looks.note(group_id, left)
        elif looks.is_due(group_id):
            left = looks.look(group_id, using)
        if left == 0:
            decide(app, group_id, using)
    except Exception as error:  # SoftTimeLimitExceeded too: the task function that it was meant for has returned
        logger.warning(
            "Group %s could not be decided (%s: %s); the sweep does it.", group_id, type(error).__name__, error
        )


def sweep(app: Celery, using: str, limit: int = LIMIT) -> int:
    """Decide groups of which nothing is left, and of which nobody has heard. Returns how many."""
    decided = 0
    for (found,) in sql.rows(using, groups.UNDECIDED, limit):
        group_id = uuid.UUID(str(found))
        try:
            decided += decide(app, group_id, using, wait=False)
        except DatabaseError as error:
            logger.warning("Group %s could not be decided (%s); trying again.", group_id, error)
    return decided


def decide(app: Celery, group_id: uuid.UUID, using: str, *, wait: bool = True) -> bool:
    """Write what follows a group, once, if nothing that it waits for is unfinished; and then whatever waits for this
    group. Says whether the group was decided.

    Raises:
        django.db.Error: the database could not be used; the group is as it was.
    """
    outer: uuid.UUID | None
    try:
        decided, outer = _decide(app, group_id, using, wait=wait, trouble=None)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # Celery's or the project's, out of the rendering of the body
        if isinstance(error, DatabaseError) and db_errors.prevents_start(error):
            raise
        logger.exception("Group %s: its body could not be written.", group_id)
        decided, outer = _decide(app, group_id, using, wait=wait, trouble=error)
    if outer is not None:
        part_ended(app, outer, using)
    return decided


def _decide(
    app: Celery, group_id: uuid.UUID, using: str, *, wait: bool, trouble: Exception | None
) -> tuple[bool, uuid.UUID | None]:
    """Returns whether it was decided, and the group that waits for it, if that may be decided now.

    Args:
        trouble: why the body can't be written, where that has been tried.
    """
    nested = in_transaction(connections[using])
    with transaction.atomic(using=using):
        if not nested:
            _read_what_is_committed(using)
        group = groups.lock_open(group_id, using, wait=wait)
        if group is None:
            return False, None
        parts = _parts(group_id, using)
        if any(part.status in OPEN for part in parts):
            return False, None
        if workflows.is_cancelled(group.root_id, using):
            groups.cancel(group, using, why=WORKFLOW_CANCELLED % {"id": group.root_id})
            return True, group.owes
        failed = next((part for part in parts if part.status != Status.SUCCEEDED), None)
        if trouble is not None:
            state, why = GroupState.FAILED, f"The body could not be started: {db_errors.describe(trouble)}"
        elif failed is not None:
            state, why = GroupState.FAILED, f"Dependency {failed.id} {_became(failed)}"
        else:
            state, why = GroupState.DONE, ""
        groups.decide(group, using, state, why)
        body = signature(result_text.decode(group.body), app=app)
        finished = body.options.pop(FINISHED, None)
        many = body.get("subtask_type") == "group"
        parent_id = parts[-1].id if parts else group.parent_id
        with (
            unit_of_work(app, using, root_id=group.root_id, parent_id=parent_id, priority=group.priority),
            owing.inheriting(group.owes, group.place, many=many) as heir,
        ):
            if finished is not None:
                _tell(finished, parts, app, using)
            if state == GroupState.DONE:
                body.apply_async((_values(parts),))
            else:
                failing.fail_body(app, group, body, why, using)
        # A body that is unfinished now tells the group that waits for it when it ends.
        return True, group.owes if state != GroupState.DONE or not heir.taken else None


def _read_what_is_committed(using: str) -> None:
    """Under REPEATABLE READ, PostgreSQL would show what was there before the lock was waited for: a part as failed,
    which a requeue has meanwhile made to wait. InnoDB looks when it first reads without a lock, which is later."""
    if connections[using].vendor == "postgresql":
        with connections[using].cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _parts(group_id: uuid.UUID, using: str) -> Sequence[Part]:
    """What owes a group, in order. One statement: a group hands its debt on to rows, and between two statements it
    would be in neither answer."""
    found = sql.rows(using, groups.PARTS, group_id, group_id)
    return [Part(status, uuid.UUID(str(part_id)), *more) for status, part_id, *more in found]


def on_finished(body: Signature, callback: Signature) -> Signature:
    """Have a task called once all parts of a chord have ended, whatever became of them.

    Args:
        body: of the chord; it is called only if all parts have succeeded.
        callback: a task's signature. It is called with a list that has a dict for each part, in order: ``id``,
            ``status`` (``succeeded``, ``failed``, ``cancelled`` or ``expired``), ``result`` and ``error``.

    Returns:
        the body, for ``chord(header, body)``.

    Example::

        chord(charges, on_finished(report.s(), clean_up.s())).delay()
    """
    marked: Signature = body.clone()
    return marked.set(**{FINISHED: callback})


def _tell(callback: Any, parts: Sequence[Part], app: Celery, using: str) -> None:
    """Write the job that :func:`on_finished` was given. What is wrong with that one keeps no body waiting."""
    try:
        with transaction.atomic(using=using):
            signature(callback, app=app).apply_async(([_outcome(part) for part in parts],))
    except (SoftTimeLimitExceeded, DatabaseError):
        raise
    except Exception:
        logger.exception("A task that was given to on_finished() could not be written.")


def _outcome(part: Part) -> dict[str, Any]:
    return {"id": str(part.id), "status": str(part.status), "result": _value(part), "error": part.error or ""}


def _values(parts: Sequence[Part]) -> list[Any]:
    """What the body is called with. The tasks of a group with which a part ended are a list of their own there."""
    values: list[Any] = []
    inside: list[tuple[str, list[Any]]] = []  # the groups around a part, outermost first, by how their places begin
    for part in parts:
        while inside and not part.place.startswith(inside[-1][0]):
            inside.pop()
        groups_around = [part.place[: found.end()] for found in re.finditer(owing.INSIDE, part.place)]
        for prefix in groups_around[len(inside) :]:
            inner: list[Any] = []
            (inside[-1][1] if inside else values).append(inner)
            inside.append((prefix, inner))
        (inside[-1][1] if inside else values).append(_value(part))
    return values


def _value(part: Part) -> Any:
    return None if part.result is None else result_text.decode(part.result)


def _became(part: Part) -> str:
    error = (part.error or "").partition("\n")[0]
    if part.status == Status.FAILED:
        return f"raised {error}"
    return "was cancelled" if part.status == Status.CANCELLED else str(part.status)
