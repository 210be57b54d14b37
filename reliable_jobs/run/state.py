"""What is known of a run: while it goes on, what its function asks for, and how it has ended."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reliable_jobs.lifecycle import Claim
from reliable_jobs.status import Status

if TYPE_CHECKING:
    from reliable_jobs.message.row_to_message import Rendered
    from reliable_jobs.workflow.following import Following


@dataclasses.dataclass
class Again:
    """Run later: what ``retry()``, ``snooze()`` and ``replace()`` ask for."""

    delay: float = 0.0
    at: datetime.datetime | None = None
    counts: bool = True
    content: Rendered | None = None
    expires: datetime.datetime | None = None
    cause: BaseException | None = None
    #: Other tasks, of which the last has this job's id: the row is held for it.
    replaced_by: Any = None


@dataclasses.dataclass
class Run:
    """One run in progress; the task function reaches it through ``request.reliable_run``."""

    claim: Claim
    #: The thread that runs it: see :func:`arrival.worker_name`.
    worker: str
    #: What is to follow the job: written with its settlement. None: nothing.
    following: Following | None = None
    #: Set by retry(), snooze() and replace().
    again: Again | None = None
    open: bool = True
    #: The heartbeat found that the job belongs to another run.
    lost: bool = False
    #: How often the heartbeat failed, and how at last.
    missed_beats: int = 0
    last_miss: Exception | None = None
    #: What on_rollback() was given.
    on_rollback: list[Callable[[], Any]] = dataclasses.field(default_factory=list)
    #: Of an atomic run: the driver's connection on which its transaction is open.
    session: Any = None


@dataclasses.dataclass
class Outcome:
    """``settle`` writes the end and says whether this run still owned the job; Celery hears ``error`` or ``value``."""

    settle: Callable[[Claim], bool]
    value: Any = None
    error: BaseException | None = None
    #: Whether the one conditional UPDATE is all that ``settle`` writes.
    alone: bool = False
    #: What the row then shows.
    status: str = Status.WAITING
    #: The task function's own exception. What it wrote is undone, whatever becomes of the transaction.
    raised: BaseException | None = None
    #: The group that waits for the job, where this end of it has been committed.
    owes: uuid.UUID | None = None
    #: How many parts of that group were unfinished after the commit; None where nobody has looked.
    left: int | None = None


class NotStarted(Exception):
    """The database failed before the task function began, which is free. The cause says how."""


class Interrupted(Exception):
    """The whole transaction is to be rolled back and the run put down to the database; the cause says why."""
