"""Charts as numbers: how many jobs ended, how long they waited and ran, by time, task, queue or release."""

from __future__ import annotations

import dataclasses
import datetime
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.models import Max, Q, Sum
from django.utils.translation import pgettext_lazy

from reliable_jobs.models import QueueStat, Stat
from reliable_jobs.models.statistics import BUCKETS, HOUR, MINUTE
from reliable_jobs.status import Ending

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

#: Tasks that the overview lists, and what a page of them does.
TASKS_SHOWN, ROWS = 30, 500


@dataclasses.dataclass(frozen=True)
class Period:
    label: StrPromise
    length: datetime.timedelta
    #: Seconds of one point.
    span: int


PERIODS = {
    "1h": Period(pgettext_lazy("period", "1 hour"), datetime.timedelta(hours=1), MINUTE),
    "24h": Period(pgettext_lazy("period", "24 hours"), datetime.timedelta(hours=24), HOUR),
    "7d": Period(pgettext_lazy("period", "7 days"), datetime.timedelta(days=7), HOUR),
}


def period_of(name: str) -> Period:
    """The period of that name; of another name, the first."""
    return PERIODS.get(name) or PERIODS["1h"]


@dataclasses.dataclass(frozen=True)
class Times:
    """About, in milliseconds, by interpolation in buckets of powers of two; None without a job."""

    run_p50: float | None
    run_p95: float | None
    wait_p50: float | None
    wait_p95: float | None

    @property
    def all(self) -> tuple[float | None, ...]:
        """In the order of the tables' columns."""
        return self.run_p50, self.run_p95, self.wait_p50, self.wait_p95


@dataclasses.dataclass(frozen=True)
class Point:
    """What ended in a minute or an hour."""

    at: datetime.datetime
    succeeded: int
    failed: int
    #: Runs that failed or died, and whose jobs run again.
    retried: int
    crashed: int
    times: Times

    @property
    def epoch(self) -> int:
        """Seconds, for the chart."""
        return int(self.at.timestamp())


@dataclasses.dataclass(frozen=True)
class Row:
    """How a task, a queue or a release did in a period."""

    name: str
    succeeded: int
    failed: int
    times: Times
    #: Seconds of all its runs together, and of the longest.
    total: float
    longest: float

    @property
    def failure_rate(self) -> float:
        """Percent."""
        return 100 * self.failed / (self.succeeded + self.failed) if self.failed else 0.0


@dataclasses.dataclass(frozen=True)
class DepthPoint:
    """How deep a queue was at a minute, or at most within an hour."""

    at: datetime.datetime
    waiting: int
    delayed: int
    running: int

    @property
    def epoch(self) -> int:
        """Seconds, for the chart."""
        return int(self.at.timestamp())


_SUMS = {name: Sum(name) for number in range(BUCKETS) for name in (f"r{number}", f"w{number}")}
_ENDED = {str(ending): Sum("n", filter=Q(ending=ending)) for ending in (Ending.SUCCEEDED, Ending.FAILED)}
_AGAIN = {str(ending): Sum("n", filter=Q(ending=ending)) for ending in (Ending.RETRIED, Ending.CRASHED)}

#: Of all tasks and queues.
ALL: Mapping[str, str] = {}


def points(using: str, period: Period, now: datetime.datetime, only: Mapping[str, str] = ALL) -> list[Point]:
    """The minutes or hours of a period from the first in which something ended to the last. One query.

    Args:
        only: ``{"task": name}`` or ``{"queue": name}``.

    Raises:
        django.db.Error: the database could not be read.
    """
    found = _rows(using, period, now, only).values("at").annotate(**_ENDED, **_AGAIN, **_SUMS).order_by("at")
    by_time: dict[datetime.datetime, dict[str, Any]] = {row["at"]: row for row in found}
    return [_point(at, by_time.get(at, {})) for at in _steps(by_time, period)]


def _point(at: datetime.datetime, row: dict[str, Any]) -> Point:
    counted = {name: row.get(name) or 0 for name in (*_ENDED, *_AGAIN)}
    return Point(at=at, times=_times(row), **counted)


def _steps(known: Iterable[datetime.datetime], period: Period) -> Iterator[datetime.datetime]:
    """From the first to the last, those between in which nothing was noted too: there a chart falls to zero."""
    ordered, step = sorted(known), datetime.timedelta(seconds=period.span)
    for at in ordered[:1]:
        while at <= ordered[-1]:
            yield at
            at += step


def rows(
    using: str, column: str, period: Period, now: datetime.datetime, only: Mapping[str, str] = ALL, most: int = ROWS
) -> list[Row]:
    """The tasks, queues or releases that took most of the workers' time in a period. One query.

    Args:
        column: "task", "queue" or "release".
        only: as for :func:`points`.
        most: how many at most.

    Raises:
        django.db.Error: the database could not be read.
    """
    sums = {**_ENDED, **_SUMS, "total": Sum("sum_ms"), "longest": Max("max_ms")}
    found = _rows(using, period, now, only).values(column).annotate(**sums).order_by("-total", column)[:most]
    return [
        Row(
            *(row[column], row["succeeded"] or 0, row["failed"] or 0, _times(row, row["longest"])),
            total=(row["total"] or 0) / 1000,
            longest=(row["longest"] or 0) / 1000,
        )
        for row in found
    ]


def depths(using: str, queue: str, period: Period, now: datetime.datetime) -> list[DepthPoint]:
    """How deep a queue was, for as long as that is kept (two days): each minute, or the most of each hour. One query.

    Raises:
        django.db.Error: the database could not be read.
    """
    most: dict[datetime.datetime, tuple[int, ...]] = defaultdict(lambda: (0, 0, 0))
    kept = QueueStat.objects.using(using).filter(queue=queue, at__gte=now - period.length)
    for at, *numbers in kept.values_list("at", "waiting", "delayed", "running"):
        point = at if period.span == MINUTE else at.replace(minute=0)
        most[point] = tuple(map(max, most[point], numbers))
    return [DepthPoint(at, *most.get(at, (0, 0, 0))) for at in _steps(most, period)]


def _rows(using: str, period: Period, now: datetime.datetime, only: Mapping[str, str]) -> Any:
    stats = Stat.objects.using(using).filter(span=period.span, **only).order_by()
    if period.span == HOUR:
        return stats.filter(at__in=hours(now - period.length, now, connections[using].timezone))
    return stats.filter(at__gte=now - period.length)


def hours(since: datetime.datetime, until: datetime.datetime, zone: datetime.tzinfo | None) -> list[datetime.datetime]:
    """The hours that begin between two times, as sweep/statistics.py cuts them: in the zone of the columns.

    They are named one by one. Of a range PostgreSQL thinks that it has most of the minutes too, which are of the last
    two days, and reads the whole table: 350 ms instead of 9, of 40 busy tasks.
    """
    hour = datetime.timedelta(hours=1)
    found: set[datetime.datetime] = set()
    for end in (since, until):  # where clocks are put by half an hour, the hours before begin elsewhere
        local = end if zone is None else end.astimezone(zone)
        at = local.replace(minute=0, second=0, microsecond=0)
        at = at if zone is None else at.astimezone(datetime.timezone.utc)
        first = at + hour * ((since - at) // hour)
        found.update(first + number * hour for number in range((until - first) // hour + 1))
    return sorted(at for at in found if since <= at <= until)


def _times(row: dict[str, Any], longest: int | None = None) -> Times:
    counted = {kind: [row.get(f"{kind}{number}") or 0 for number in range(BUCKETS)] for kind in "rw"}
    times = Times(*(percentile(counted[kind], share) for kind in "rw" for share in (0.5, 0.95)))
    if longest and times.run_p50 is not None and times.run_p95 is not None:
        # The interpolation knows no more than the bucket.
        run = {"run_p50": min(times.run_p50, longest), "run_p95": min(times.run_p95, longest)}
        times = dataclasses.replace(times, **run)
    return times


def percentile(buckets: Sequence[int], share: float) -> float | None:
    """About the value in milliseconds below which a share of the counted ones lies; None without any.

    Args:
        buckets: how many lay in each; see :data:`reliable_jobs.models.statistics.BUCKETS`.
    """
    wanted = share * sum(buckets)
    if not wanted:
        return None
    below = 0
    for number, count in enumerate(buckets):
        if below + count >= wanted:
            low, high = (0.0, 1.0) if number == 0 else (2.0 ** (number - 1), 2.0**number)
            return low + (high - low) * (wanted - below) / count
        below += count
    return None
