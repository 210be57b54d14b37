"""Adds up what has become of the jobs, by minute and hour: once a minute and database, by whichever sweep comes first.

Successes are counted by their rows, all other endings by their events. Each round counts anew the five minutes before
the end of the last one, because a transaction may commit a row long after the time that the row bears; what commits
later still is not counted. A count never sinks: rows that were requeued, pruned or purged since have been seen. What is
counted and how far it has come is one transaction, and its row's lock keeps others out.
"""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.db import connections, transaction
from django.db.models import Case, Count, F, FloatField, Func, IntegerField, Max, Min, Q, Sum, Value, When
from django.db.models.functions import TruncMinute

from reliable_jobs import databases
from reliable_jobs.clock import Now
from reliable_jobs.compat.django import locks_no_keys, skips_locked
from reliable_jobs.models import Job, JobEvent, QueueStat, Stat, StatState
from reliable_jobs.models.statistics import BUCKETS, HOUR, MINUTE
from reliable_jobs.status import Ending, EventKind, Status

#: Seconds between two rounds.
EVERY = 60.0
#: How much later than the time that its row bears a transaction may commit and be counted.
LATE = datetime.timedelta(minutes=5)
#: What one round takes at most after a long pause; the next follows at once.
MOST = datetime.timedelta(hours=1)
#: How long minutes and hours are kept.
KEPT = {MINUTE: datetime.timedelta(hours=48), HOUR: datetime.timedelta(days=30)}

_NUMBERS = ("n", "sum_ms", "wait_sum", *(f"{kind}{bucket}" for kind in "rw" for bucket in range(BUCKETS)))
_HIGHEST = ("max_ms", "wait_max")
#: (beginning, task, queue, ending, release), and what is counted of it.
_Key = tuple[datetime.datetime, str, str, str, str]
_Counted = dict[_Key, dict[str, int]]

_next_try: dict[str, float] = {}


def roll_when_due() -> None:
    """Count on each database, where this process has not tried for a minute.

    Raises:
        Exception: of a database that could not be counted, after the others have been.
    """
    databases.on_each(_roll_when_due, "Counting what has ended")


def _roll_when_due(using: str) -> None:
    if time.monotonic() >= _next_try.get(using, 0.0):
        _next_try[using] = time.monotonic() + EVERY
        if roll(using):
            del _next_try[using]  # the next tick goes on


def roll(using: str, *, at_once: bool = False) -> bool:
    """Count what has ended since the last round. Returns whether there is more to do at once.

    Args:
        at_once: also where somebody has counted within the last minute.

    Raises:
        django.db.Error: nothing was changed.
    """
    with transaction.atomic(using=using):
        state = _lock(using)
        if state is None:
            return False
        now: datetime.datetime = state.now  # type: ignore[attr-defined] # the annotation of _lock
        # A clock that was set back must not stop it.
        if not at_once and 0 <= (now - state.rolled).total_seconds() < EVERY - 5:
            return False
        since = _minute(min(state.rolled, now) - LATE)
        until = min(now, _minute(since + LATE + MOST))
        changed = _store(using, _of_rows(using, since, until) | _of_events(using, since, until), since, until)
        for hour in sorted({at.replace(minute=0) for at in changed}):
            _add_up_hour(using, hour)
        if until == now:
            _note_depths(using, now)
        StatState.objects.using(using).filter(pk=state.pk).update(rolled=until)
        return until < now


def counted_until(using: str) -> datetime.datetime | None:
    """Of what ended before, nothing is counted any more: it may be pruned. None where nobody counts."""
    rolled = StatState.objects.using(using).values_list("rolled", flat=True).first()
    return None if rolled is None else rolled - LATE


def prune(using: str) -> None:
    """Delete what is older than KEPT."""
    for span, kept in KEPT.items():
        Stat.objects.using(using).filter(span=span, at__lt=Now() - kept).delete()
    QueueStat.objects.using(using).filter(at__lt=Now() - KEPT[MINUTE]).delete()


def _lock(using: str) -> StatState | None:
    """The one row, locked; None where another one has it, or it is made just now and there is nothing to count yet."""
    connection = connections[using]
    rows = StatState.objects.using(using).annotate(now=Now())
    state = rows.select_for_update(skip_locked=skips_locked(connection), no_key=locks_no_keys(connection)).first()
    if state is None and not rows.exists():
        StatState.objects.using(using).bulk_create([StatState(rolled=Now())], ignore_conflicts=True)
    return state


def _minute(at: datetime.datetime) -> datetime.datetime:
    return at.replace(second=0, microsecond=0)


# --- what is counted --------------------------------------------------------------------------------------------------


class _Milliseconds(Func):
    """From one time to another."""

    output_field = FloatField()

    def __init__(self, since: Any, until: Any) -> None:
        super().__init__(since, until)

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "(DATE_PART('epoch', -(%(expressions)s)) * 1000)"
        return self.as_sql(compiler, connection, template=template, arg_joiner=" - ", **extra)

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "(TIMESTAMPDIFF(MICROSECOND, %(expressions)s) / 1000)"
        return self.as_sql(compiler, connection, template=template, **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "((JULIANDAY(%(expressions)s)) * -86400000.0)"
        return self.as_sql(compiler, connection, template=template, arg_joiner=") - JULIANDAY(", **extra)


class _Bucket(Func):
    """PostgreSQL looks it up; the others compare."""

    output_field = IntegerField()
    template = "WIDTH_BUCKET(%(expressions)s, ARRAY[{}]::float8[])".format(
        ", ".join(str(2**number) for number in range(BUCKETS - 1))
    )


def _bucket(using: str, name: str) -> Any:
    if connections[using].vendor == "postgresql":
        return _Bucket(F(name))
    less = (When(**{f"{name}__lt": 2.0**number, "then": Value(number)}) for number in range(BUCKETS - 1))
    return Case(*less, default=Value(BUCKETS - 1))


def _of_rows(using: str, since: datetime.datetime, until: datetime.datetime) -> _Counted:
    rows: Any = (
        Job.objects.using(using)
        .filter(status=Status.SUCCEEDED, finished_at__gte=since, finished_at__lt=until, run_started_at__isnull=False)
        .annotate(
            minute=TruncMinute("finished_at", tzinfo=_zone(using)),
            ms=_Milliseconds(F("run_started_at"), F("finished_at")),
            wait=_Milliseconds(F("due_at"), F("run_started_at")),
        )
        .annotate(r=_bucket(using, "ms"), w=_bucket(using, "wait"))
        .order_by()
        .values("minute", "task", "queue", "release", "r", "w")
        .annotate(number=Count("pk"), sum_ms=Sum("ms"), max_ms=Max("ms"), wait_sum=Sum("wait"), wait_max=Max("wait"))
    )
    counted: _Counted = defaultdict(lambda: defaultdict(int))
    for row in rows:
        numbers = counted[row["minute"], row["task"], row["queue"], Ending.SUCCEEDED.value, row["release"]]
        numbers["n"] += row["number"]
        numbers[f"r{row['r']}"] += row["number"]
        numbers[f"w{row['w']}"] += row["number"]
        for name in ("sum_ms", "wait_sum"):
            numbers[name] += max(0, round(row[name]))
        for name in _HIGHEST:
            numbers[name] = max(numbers[name], round(row[name]))
    return counted


def _of_events(using: str, since: datetime.datetime, until: datetime.datetime) -> _Counted:
    rows: Any = (
        JobEvent.objects.using(using)
        .filter(at__gte=since, at__lt=until, final__isnull=False)
        .annotate(minute=TruncMinute("at", tzinfo=_zone(using)))
        .order_by()
        .values("minute", "task", "queue", "release", "kind", "final")
        .annotate(number=Count("pk"))
    )
    counted: _Counted = defaultdict(lambda: defaultdict(int))
    for row in rows:
        ending = _ending(row["kind"], row["final"])
        counted[row["minute"], row["task"], row["queue"], ending, row["release"]]["n"] += row["number"]
    return counted


def _ending(kind: str, final: bool) -> str:
    if kind == EventKind.CANCEL:
        return Ending.CANCELLED.value
    if kind == EventKind.EXPIRY:
        return Ending.EXPIRED.value
    if final:
        return Ending.FAILED.value
    crashed = kind in (EventKind.CRASH, EventKind.TIME_LIMIT, EventKind.RESCUE)
    return (Ending.CRASHED if crashed else Ending.RETRIED).value


def _zone(using: str) -> datetime.tzinfo | None:
    """In which minutes are cut: that of the columns, so that MySQL need not know any zone."""
    zone: datetime.tzinfo | None = connections[using].timezone
    return zone


# --- how it is kept ---------------------------------------------------------------------------------------------------


def _store(using: str, counted: _Counted, since: datetime.datetime, until: datetime.datetime) -> set[datetime.datetime]:
    """Write the minutes of which more is known now. Returns which these are."""
    minutes = Stat.objects.using(using).filter(span=MINUTE, at__gte=since, at__lt=until)
    known = {(row.at, row.task, row.queue, row.ending, row.release): row for row in minutes}
    more = {key: numbers for key, numbers in counted.items() if key not in known or numbers["n"] > known[key].n}
    _replace(using, MINUTE, [known[key].pk for key in more if key in known], more)
    return {key[0] for key in more}


def _add_up_hour(using: str, hour: datetime.datetime) -> None:
    end = hour + datetime.timedelta(hours=1)
    sums: dict[str, Any] = {f"{name}_": Sum(name) for name in _NUMBERS} | {f"{name}_": Max(name) for name in _HIGHEST}
    minutes = Stat.objects.using(using).filter(span=MINUTE, at__gte=hour, at__lt=end).order_by()
    rows: Any = minutes.values("task", "queue", "ending", "release").annotate(**sums)
    added = {
        (hour, row["task"], row["queue"], row["ending"], row["release"]): {
            name: int(row[f"{name}_"]) for name in (*_NUMBERS, *_HIGHEST)
        }
        for row in rows
    }
    old = Stat.objects.using(using).filter(span=HOUR, at=hour)
    _replace(using, HOUR, list(old.values_list("pk", flat=True)), added)


def _replace(using: str, span: int, old: Iterable[int], new: _Counted) -> None:
    Stat.objects.using(using).filter(pk__in=list(old)).delete()
    Stat.objects.using(using).bulk_create(
        Stat(span=span, at=at, task=task, queue=queue, ending=ending, release=release, **numbers)
        for (at, task, queue, ending, release), numbers in new.items()
    )


def _note_depths(using: str, now: datetime.datetime) -> None:
    due = Q(due_at__lte=now)
    found: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(("waiting", "delayed", "running", "oldest_s"), 0)
    )
    jobs = Job.objects.using(using).order_by().values("queue")
    depths = jobs.filter(status=Status.WAITING).annotate(
        due=Count("due_at", filter=due), later=Count("due_at", filter=~due), oldest=Min("due_at")
    )
    row: Any
    for row in depths:
        oldest = (now - row["oldest"]).total_seconds() if row["due"] else 0
        found[row["queue"]].update(waiting=row["due"], delayed=row["later"], oldest_s=int(oldest))
    for row in jobs.filter(status=Status.RUNNING).annotate(number=Count("pk")):
        found[row["queue"]]["running"] = row["number"]
    rows = [QueueStat(at=_minute(now), queue=queue, **depth) for queue, depth in found.items() if any(depth.values())]
    QueueStat.objects.using(using).bulk_create(rows, ignore_conflicts=True)
