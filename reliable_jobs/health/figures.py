"""How deep the queues are and what fails, for the admin's first page and for metrics. The cost is bounded by what is
unfinished or has failed lately."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

from django.db.models import Count, Max, Min, Q, Sum

from reliable_jobs.models import Job, Pause, Stat
from reliable_jobs.models.statistics import MINUTE
from reliable_jobs.presence import Seen
from reliable_jobs.status import Ending, Reason, Status

#: Kinds of failures that are told, and for how long ago.
FAILING_SHOWN, FAILING_SINCE = 30, datetime.timedelta(hours=24)
#: Of all tasks and queues.
ALL: Mapping[str, str] = {}
#: Over how many minutes rates are taken.
RATE_MINUTES = 10


@dataclasses.dataclass
class Failing:
    """Failures of one kind: of a task, with a class of exception, in a release."""

    task: str
    error: str
    release: str
    failed: int = 0
    #: Of them, within the last hour.
    lately: int = 0
    retrying: int = 0
    first: datetime.datetime | None = None
    last: datetime.datetime | None = None
    since: datetime.datetime | None = None
    #: Of this queue alone; None: of all.
    queue: str | None = None


@dataclasses.dataclass
class Depth:
    """How a queue stands."""

    queue: str
    #: Due, running or not: the first run of an atomic task does not show.
    waiting: int = 0
    delayed: int = 0
    running: int = 0
    oldest: datetime.timedelta | None = None
    paused: Pause | None = None
    consumers: int = 0
    #: Jobs that ended in a second, lately; None where nothing is known.
    rate: float | None = None


class Ended(NamedTuple):
    """Runs that ended lately."""

    queue: str
    task: str
    #: Of :class:`reliable_jobs.status.Ending`.
    ending: str
    number: int

    @property
    def final(self) -> bool:
        """Whether their jobs ended with them."""
        return self.ending not in (Ending.RETRIED, Ending.CRASHED)


def ended_lately(using: str, now: datetime.datetime) -> list[Ended]:
    """What has ended within RATE_MINUTES, as far as it has been counted. One query.

    Args:
        now: by the database's clock.

    Raises:
        django.db.Error: the database could not be read.
    """
    rows = Stat.objects.using(using).filter(span=MINUTE, at__gte=now - datetime.timedelta(minutes=RATE_MINUTES))
    counted = rows.order_by().values("queue", "task", "ending").annotate(number=Sum("n"))
    return [Ended(**row) for row in counted]


def depths(
    using: str,
    now: datetime.datetime,
    living: list[Seen],
    pauses: list[Pause],
    ended: list[Ended],
    only: Mapping[str, str] = ALL,
) -> list[Depth]:
    """The queues that hold a job, are paused, have a consumer or have had a job, the deepest first. Two queries.

    Args:
        now: by the database's clock.
        living: the processes that work.
        pauses: those of queues.
        ended: see :func:`ended_lately`.
        only: ``{"queue": name}``: the jobs of that queue alone are read. The other arguments are taken as they are.

    Raises:
        django.db.Error: the database could not be read.
    """
    found: dict[str, Depth] = {}

    def of(queue: str) -> Depth:
        return found.setdefault(queue, Depth(queue))

    row: Any
    due = Q(due_at__lte=now)
    waiting = Job.objects.using(using).filter(status=Status.WAITING, **only).order_by().values("queue")
    for row in waiting.annotate(
        due=Count("due_at", filter=due), later=Count("due_at", filter=~due), oldest=Min("due_at")
    ):
        depth = of(row["queue"])
        depth.waiting, depth.delayed = row["due"], row["later"]
        depth.oldest = now - row["oldest"] if row["due"] else None
    running = Job.objects.using(using).filter(status=Status.RUNNING, **only).order_by().values("queue")
    for row in running.annotate(number=Count("*")):
        of(row["queue"]).running = row["number"]
    for pause in pauses:
        of(pause.name).paused = pause
    for process in living:
        for queue in process.queues:
            of(queue).consumers += 1
    for one in ended:
        if one.final:
            depth = of(one.queue)
            depth.rate = (depth.rate or 0.0) + one.number / (RATE_MINUTES * 60)
    return sorted(found.values(), key=lambda depth: (-depth.waiting, depth.queue))


def failing(using: str, now: datetime.datetime, only: Mapping[str, str] = ALL) -> list[Failing]:
    """What failed within the last day and what waits for another attempt, FAILING_SHOWN kinds of each, the last first.
    Two queries.

    Args:
        now: by the database's clock.
        only: ``{"task": name}`` or ``{"queue": name}``.

    Raises:
        django.db.Error: the database could not be read.
    """
    since = now - FAILING_SINCE
    rows = Job.objects.using(using).filter(status=Status.FAILED, finished_at__gte=since, **only).order_by()
    grouped = rows.values("task", "error_class", "release").annotate(
        number=Count("*"),
        lately=Count("finished_at", filter=Q(finished_at__gte=now - datetime.timedelta(hours=1))),
        first=Min("finished_at"),
        last=Max("finished_at"),
    )
    found = [
        Failing(
            *(row["task"], row["error_class"], row["release"]),
            failed=row["number"],
            lately=row["lately"],
            first=row["first"],
            last=row["last"],
            since=since,
            queue=only.get("queue"),
        )
        for row in grouped.order_by("-last")[:FAILING_SHOWN]
    ]
    retrying = Job.objects.using(using).filter(status=Status.WAITING, reason=Reason.ERROR, **only).order_by()
    by_kind = {(one.task, one.error): one for one in reversed(found)}
    for row in retrying.values("task", "error_class").annotate(number=Count("*"))[:FAILING_SHOWN]:
        kind = by_kind.get((row["task"], row["error_class"]))
        if kind is None:
            found.append(kind := Failing(row["task"], row["error_class"], "", queue=only.get("queue")))
        kind.retrying = row["number"]
    return found
