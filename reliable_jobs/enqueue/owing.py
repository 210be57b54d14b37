"""New rows and the groups that wait for them.

The first part of a chord's header that becomes a row opens the group's own row in the same transaction, and each part
is born owing the group. What a settlement writes takes the debt over: see :func:`inheriting`.

The place of a part orders the results for the body, in six hexadecimal digits. The parts with which a group begins are
numbered as they come. A row that takes a debt over has the place of the one before it. What is added to a chord is
numbered behind the one that adds it; so are the tasks of a group that takes a debt over, behind `INSIDE`: their results
are a list in that place, as Celery has it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from reliable_jobs.enqueue import announced
from reliable_jobs.message import debts, result_text
from reliable_jobs.message.row_to_message import Debt, Rendered
from reliable_jobs.models import JobGroup

#: In a place, before the number of a task in a group that has taken a debt over. Behind all digits in every collation.
INSIDE = "x"


@dataclasses.dataclass
class Inheritance:
    """The debt of a job or a group that ends in this transaction, for what is written to follow it."""

    owes: uuid.UUID | None
    place: str
    #: What follows are the tasks of a group.
    many: bool
    #: How many rows and groups have taken it over.
    taken: int = 0

    def next_place(self) -> str:
        number, self.taken = self.taken, self.taken + 1
        return self.place + INSIDE + _digits(number) if self.many else self.place


class _Here(threading.local):
    def __init__(self) -> None:
        self.inheritances: list[Inheritance] = []


_here = _Here()
_added = itertools.count()


@contextlib.contextmanager
def inheriting(owes: uuid.UUID | None, place: str, *, many: bool = False) -> Iterator[Inheritance]:
    """Inside, new rows that owe this group take a debt over. ``taken`` says afterwards whether any has.

    Args:
        owes, place: of the job or the group that ends.
        many: what follows are the tasks of a group.
    """
    inheritance = Inheritance(owes, place, many)
    _here.inheritances.append(inheritance)
    try:
        yield inheritance
    finally:
        _here.inheritances.pop()


def of_new_row(app: Any, rendered: Rendered, debt: Debt, alias: str) -> tuple[uuid.UUID, str]:
    """The group that a row to be written owes, and the row's place among its parts.

    Raises:
        django.db.Error: as any write.
    """
    lineage = {"root_id": rendered.root_id, "parent_id": rendered.parent_id, "priority": rendered.priority}
    caller = app.current_worker_task
    run = None if caller is None else caller.request.get("reliable_run")
    return take(debt, alias, lineage, run.claim.job.place if run is not None else "")


def take(debt: Debt, alias: str, lineage: Mapping[str, Any], caller_place: str = "") -> tuple[uuid.UUID, str]:
    """The group that a new row owes, and the row's place among its parts. Opens the group with the first of them.

    Args:
        debt: one of a group of ours.
        alias: of a database with an open transaction.
        lineage: ``root_id``, ``parent_id`` and ``priority`` of the row, which are the group's too.
        caller_place: of the running job, which may add a part.

    Raises:
        django.db.Error: as any write.
    """
    heir = _here.inheritances[-1] if _here.inheritances else None
    if heir is not None and heir.owes == debt.group_id:
        return debt.group_id, heir.next_place()
    chord = announced.find(debt.group_id)
    if chord is None:
        return debt.group_id, added_to(caller_place)
    if chord.parts is None:
        _open(debt, alias, lineage, chord.size)
        chord.parts = 0
    number, chord.parts = chord.parts, chord.parts + 1
    return debt.group_id, _digits(number)


def _open(debt: Debt, alias: str, lineage: Mapping[str, Any], size: int | None) -> None:
    body: Mapping[str, Any] = debt.body
    outer = debts.of_signature(body)
    owes, place = None, ""
    if outer is not None and announced.is_ours(outer):
        owes, place = take(outer, alias, lineage)
        body = debts.signature_without(body, debts.stub(outer.body))
    group = JobGroup(
        id=debt.group_id,
        body=result_text.encode(body, "json"),
        body_id=debts.result_id(body),
        owes=owes,
        place=place,
        size=size,
        **lineage,
    )
    JobGroup.objects.using(alias).bulk_create([group], ignore_conflicts=True)


def note_size(group_id: uuid.UUID, size: int, alias: str | None) -> None:
    """How many parts a group has that is being applied.

    Args:
        alias: None where no transaction is open, and so no part has been written.
    """
    chord = announced.find(group_id)
    if chord is not None:
        chord.size = size
        if chord.parts is not None and alias is not None:
            JobGroup.objects.using(alias).filter(pk=group_id).update(size=size)


def added_to(place: str) -> str:
    """The place of a part that a running one adds to its group: behind it."""
    return place + _digits(next(_added) % 16**6)


def _digits(number: int) -> str:
    return f"{number:06x}"
