"""Which processes there are, by what they said of themselves last."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Sequence

from django.db.models import TextChoices
from django.utils import timezone

from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.models import Process
from reliable_jobs.status import ProcessKind

#: Intervals after which a process counts as silent, and as gone.
SILENT, GONE = 3, 12


class State(TextChoices):
    #: It was seen lately.
    THERE = "there", "there"
    #: Not for three intervals: it is busy with one long call, or its database or its host is slow; or it has died.
    SILENT = "silent", "silent"
    #: Not for twelve intervals, and it did not say that it ends: it was killed, or its host is gone.
    GONE = "gone", "gone"
    #: It ended by itself.
    ENDED = "ended", "ended"


@dataclasses.dataclass(frozen=True)
class Seen:
    """A process, and what it said last."""

    id: uuid.UUID
    kind: str
    name: str
    host: str
    pid: int
    release: str
    pool: str
    started_at: datetime.datetime
    seen_at: datetime.datetime
    ended_at: datetime.datetime | None
    state: State
    #: How long ago it was seen, by the database's clock.
    ago: datetime.timedelta
    queues: Sequence[str]
    #: Pairs of a task's id and the seconds for which it ran when this was said.
    active: Sequence[tuple[str, float]]
    broker_ok: bool | None

    @property
    def works(self) -> bool:
        """Whether it is there, as far as one can see."""
        return self.state in (State.THERE, State.SILENT)


@dataclasses.dataclass(frozen=True)
class Consumers:
    """Who consumes a queue."""

    #: Workers that do now, as far as one can see.
    now: Sequence[Seen]
    #: Of those that no longer do, the one that was seen last.
    last: Seen | None


def processes(using: str) -> list[Seen]:
    """All that were seen within a day, the last seen first. One query."""
    rows = Process.objects.using(using).select_related("seen").filter(seen__isnull=False).annotate(now=Now())
    return [_seen(row, row.now) for row in rows.order_by("-seen__seen_at", "name")]


def clock(found: Sequence[Seen]) -> datetime.datetime:
    """The time by the clock of the database that these were read from; by this machine's where none was seen."""
    return found[0].seen_at + found[0].ago if found else timezone.now()


def consumers_of(queue: str, using: str) -> Consumers:
    """Who consumes a queue. One query."""
    found = [one for one in processes(using) if one.kind == ProcessKind.WORKER and queue in one.queues]
    now = [one for one in found if one.works]
    return Consumers(now, next((one for one in found if not one.works), None))


def _seen(row: Process, now: datetime.datetime) -> Seen:
    seen = row.seen
    ago = max(now - seen.seen_at, datetime.timedelta())
    intervals = ago.total_seconds() / (settings.PRESENCE_INTERVAL or 10.0)
    if row.ended_at is not None:
        state = State.ENDED
    elif intervals >= GONE:
        state = State.GONE
    else:
        state = State.SILENT if intervals >= SILENT else State.THERE
    about = {name: getattr(row, name) for name in ("id", "kind", "name", "host", "pid", "release", "pool")}
    return Seen(
        **about,
        started_at=row.started_at,
        seen_at=seen.seen_at,
        ended_at=row.ended_at,
        state=state,
        ago=ago,
        queues=tuple(seen.queues),
        active=tuple((task_id, seconds) for task_id, seconds in seen.active),
        broker_ok=seen.broker_ok,
    )
