"""Chords whose headers are being applied in this thread.

Celery tells the result backend of a chord before it calls the header's tasks: here that is kept until their rows are
written. Needs no loaded apps: what renders messages asks it, and base classes of tasks import that.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from reliable_jobs.message import debts
from reliable_jobs.message.row_to_message import Debt

#: Inside each other. What is older was broken off by an error.
_MOST = 100


@dataclasses.dataclass
class Announced:
    """One such chord."""

    #: What stands for its body in the messages of its parts.
    stub: dict[str, Any]
    #: How many parts it has, where Celery has said so.
    size: int | None = None
    #: How many parts have been written; None before the first, with which the group's row is.
    parts: int | None = None


class _Here(threading.local):
    def __init__(self) -> None:
        self.chords: collections.OrderedDict[uuid.UUID, Announced] = collections.OrderedDict()


_here = _Here()


def announce(group_id: uuid.UUID, body: Mapping[str, Any]) -> None:
    """The parts that are called next are to be rows that owe this group."""
    _here.chords[group_id] = Announced(debts.stub(body))
    _here.chords.move_to_end(group_id)
    while len(_here.chords) > _MOST:
        _here.chords.popitem(last=False)


def find(group_id: uuid.UUID) -> Announced | None:
    found = _here.chords.get(group_id)
    if found is not None:
        _here.chords.move_to_end(group_id)
    return found


def is_ours(debt: Debt) -> bool:
    """Whether the group is one that has a row, or gets one."""
    return debts.is_stub(debt.body) or debt.group_id in _here.chords


def shortened(debt: Debt, embed: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is to follow a part, without the group's body."""
    found = _here.chords.get(debt.group_id)
    return embed if found is None else debts.without_body(embed, found.stub)
