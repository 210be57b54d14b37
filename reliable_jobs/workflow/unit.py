"""A unit of work: inside it, every message that Celery makes through the app becomes a row of the open transaction.

``apply_async(producer=…)`` can't do that for a canvas: chains and chords drop the producer on their way. So it is
ambient, for the thread (or greenlet) that entered it. workflow/capture.py makes the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

from django.db import connections

from reliable_jobs.compat.django_transaction import open_blocks


@dataclasses.dataclass(frozen=True)
class Unit:
    """What the rows of a unit of work have in common."""

    app: Any
    #: Database alias, with an open transaction.
    using: str
    #: Of the rows' messages, where the call does not say: Celery would take them from the current task, which a sweeper
    #: does not have.
    root_id: str | None = None
    parent_id: str | None = None
    priority: int | None = None
    #: Its rows follow a job: one that exists already stays as it is, because the settlement has been tried before or
    #: the job was requeued. Not so for a caller's own group.
    follows: bool = True
    #: The failed job that its rows are to be told of; see workflow/errbacks.py.
    errback_of: uuid.UUID | None = None
    #: The innermost ``atomic`` block in which it was entered; None where the caller manages the transaction.
    block: Any = None

    @property
    def marks(self) -> dict[str, Any]:
        """What sets its rows apart: of ``enqueue.insert.Request``."""
        return {"follows": self.follows, "errback_of": self.errback_of}

    def with_lineage(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a call, and what they leave out of the unit's own."""
        ours = {"root_id": self.root_id, "parent_id": self.parent_id, "priority": self.priority}
        missing = {name: value for name, value in ours.items() if value is not None and options.get(name) is None}
        return {**options, **missing} if missing else options


class _Here(threading.local):
    def __init__(self) -> None:
        self.units: list[Unit] = []
        #: The call of a group that is in progress and has no transaction yet.
        self.group: GroupCall | None = None


_here = _Here()


def current() -> Unit | None:
    """The unit of work that this thread has entered; None outside of one."""
    units = _here.units
    # An error that hits its very end (a soft time limit, Ctrl-C) may leave one behind. Later calls would be counted
    # among its workflow's, and be cancelled with them.
    while units and units[-1].block is not None and units[-1].block not in open_blocks(connections[units[-1].using]):
        units.pop()
    return units[-1] if units else None


def begun() -> Unit | None:
    """The unit of work for a row that is written now; None outside of one. The first row of a group's calls begins
    theirs, with its transaction."""
    here = current()
    if here is None and _here.group is not None:
        _here.group.begin()
        here = current()
    return here


@contextlib.contextmanager
def unit_of_work(
    app: Any,
    using: str,
    *,
    root_id: Any = None,
    parent_id: Any = None,
    priority: int | None = None,
    follows: bool = True,
    errback_of: uuid.UUID | None = None,
) -> Iterator[Unit]:
    """Inside, what Celery's canvas sends becomes rows of the open transaction: of reliable tasks and of others, by
    signature or by name.

    Args:
        app: whose messages.
        using: database alias, with an open transaction.
        root_id, parent_id, priority: of the rows, where a call does not say.
        follows: the rows follow a job; one that exists already stays as it is.
        errback_of: the failed job that the rows are to be told of.

    Example::

        with transaction.atomic(using="default"), unit_of_work(app, "default"):
            (resize.si(1) | publish.si(1)).apply_async()
    """
    blocks = open_blocks(connections[using])
    made = Unit(
        app,
        using,
        root_id=None if root_id is None else str(root_id),
        parent_id=None if parent_id is None else str(parent_id),
        priority=priority,
        follows=follows,
        errback_of=errback_of,
        block=blocks[-1] if blocks else None,
    )
    outer = _here.units
    _here.units = [*outer, made]
    try:
        yield made
    finally:
        _here.units = outer


class GroupCall(Protocol):
    """The call of a group outside a unit of work."""

    def begin(self) -> None:
        """Open its transaction and enter a unit of work."""


def group_call() -> Any:
    """The call of a group that is in progress in this thread, the outermost one; None outside of one."""
    return _here.group


@contextlib.contextmanager
def calling_group(group: GroupCall) -> Iterator[None]:
    """Inside, :func:`begun` begins the group where there is no unit of work."""
    _here.group = group
    try:
        yield
    finally:
        _here.group = None
