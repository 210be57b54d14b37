"""What is counted by minute and hour is exact: under late commits, two rollers, kills, requeues and prunes."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings

from reliable_jobs import lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.lifecycle import Claim
from reliable_jobs.models import Job, JobEvent, QueueStat, Stat, StatState
from reliable_jobs.models.statistics import HOUR, MINUTE
from reliable_jobs.status import EventKind, Reason, Status
from reliable_jobs.sweep import pruner, statistics
from reliable_jobs.sweep.loop import SweepLoop
from tests.celery_app import app
from tests.lifecycle.made import make
from tests.support.harness import Stack, Transaction

pytestmark = pytest.mark.django_db


def database_now() -> datetime.datetime:
    StatState.objects.get_or_create(pk=1, defaults={"rolled": Now()})
    return StatState.objects.annotate(now=Now()).values_list("now", flat=True).get()


def rolled(minutes_ago: float) -> None:
    """The last round was so long ago."""
    at = database_now() - datetime.timedelta(minutes=minutes_ago)
    StatState.objects.update(rolled=at)


def succeeded(ago: float, *, ms: float = 100, wait: float = 1000, **columns: Any) -> Job:
    """A job that has succeeded so many seconds ago, after a run and a wait of so many milliseconds."""
    end = database_now() - datetime.timedelta(seconds=ago)
    began = end - datetime.timedelta(milliseconds=ms)
    due = began - datetime.timedelta(milliseconds=wait)
    return make(Status.SUCCEEDED, finished_at=end, run_started_at=began, due_at=due, **columns)


def failed_event(ago: float = 0, *, final: bool | None = True, kind: str = "failure", **columns: Any) -> JobEvent:
    given = {"task": "t", "queue": "q", "release": "v1", **columns}
    event = JobEvent.objects.create(job_id=make().pk, kind=kind, final=final, **given)
    JobEvent.objects.filter(pk=event.pk).update(at=database_now() - datetime.timedelta(seconds=ago))
    return event


def counted(span: int = MINUTE) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in Stat.objects.filter(span=span):
        found[row.ending] = found.get(row.ending, 0) + row.n
    return found


def roll() -> None:
    while statistics.roll("default", at_once=True):
        pass


# --- what is counted --------------------------------------------------------------------------------------------------


def test_run_times_and_waits_are_counted_by_powers_of_two() -> None:
    rolled(5)
    for ms, wait in ((0, 0), (5.5, 6), (100, 1000), (120, 1000), (8_000_000, 5_000_000)):
        succeeded(120, ms=ms, wait=wait, task="t", queue="q", release="v1")
    roll()
    minutes = list(Stat.objects.filter(span=MINUTE))
    assert {(row.task, row.queue, row.release, row.ending) for row in minutes} == {("t", "q", "v1", "succeeded")}
    hour = {name: sum(getattr(row, name) for row in Stat.objects.filter(span=HOUR)) for name in ("n", "sum_ms")}
    (row,) = minutes
    runs = {number: getattr(row, f"r{number}") for number in range(24) if getattr(row, f"r{number}")}
    waits = {number: getattr(row, f"w{number}") for number in range(24) if getattr(row, f"w{number}")}
    assert runs == {0: 1, 3: 1, 7: 2, 23: 1}
    assert waits == {0: 1, 3: 1, 10: 2, 23: 1}
    assert (row.n, row.max_ms, row.wait_max) == (5, 8_000_000, 5_000_000)
    assert abs(row.sum_ms - 8_000_225) <= 5
    assert hour == {"n": 5, "sum_ms": row.sum_ms}


def test_each_ending_is_counted_by_its_event() -> None:
    rolled(5)
    for kind, final in (
        *((EventKind.FAILURE, True), (EventKind.CRASH, True), (EventKind.PARKED, True), (EventKind.CANCEL, True)),
        *((EventKind.EXPIRY, True), (EventKind.FAILURE, False), (EventKind.INTERRUPTION, False)),
        *((EventKind.CRASH, False), (EventKind.RESCUE, False), (EventKind.TIME_LIMIT, False)),
        *((EventKind.RESCUE, None), (EventKind.REQUEUE, None), (EventKind.FAILURE, None)),
    ):
        failed_event(60, kind=kind, final=final)
    roll()
    wanted = {"failed": 3, "cancelled": 1, "expired": 1, "retried": 2, "crashed": 3}
    assert (counted(), counted(HOUR)) == (wanted, wanted)


def test_receipts_and_rows_from_before_are_not_counted() -> None:
    rolled(5)
    make(Status.SUCCEEDED, run_started_at=None)
    roll()
    assert counted() == {}


def test_the_depth_of_each_queue_is_noted_once_a_minute() -> None:
    rolled(5)
    now = database_now()
    for queue, seconds in (("a", -100), ("a", -50), ("a", 50), ("b", 50)):
        make(queue=queue, due_at=now + datetime.timedelta(seconds=seconds))
    make(Status.RUNNING, queue="a")
    roll()
    roll()
    rows = {row.queue: (row.waiting, row.delayed, row.running) for row in QueueStat.objects.all()}
    assert rows == {"a": (2, 1, 1), "b": (0, 1, 0)}
    assert 99 <= QueueStat.objects.filter(queue="a").latest("at").oldest_s <= 160, "of a minute, or of two"


def test_a_long_pause_is_made_up_for_in_pieces() -> None:
    rolled(60 * 5)
    for hours in (1, 2, 3, 4):
        succeeded(hours * 3600)
    assert statistics.roll("default")
    assert statistics.roll("default", at_once=True)
    roll()
    assert counted(HOUR) == counted() == {"succeeded": 4}


def test_once_a_minute_is_enough() -> None:
    rolled(0.5)
    succeeded(10)
    statistics.roll("default")
    assert counted() == {}
    rolled(1)
    statistics.roll("default")
    assert counted() == {"succeeded": 1}


def test_the_first_round_only_begins() -> None:
    succeeded(60)
    StatState.objects.all().delete()
    assert statistics.counted_until("default") is None
    statistics.roll("default")
    assert counted() == {}
    assert statistics.counted_until("default") is not None


# --- races ------------------------------------------------------------------------------------------------------------


def test_what_commits_late_is_counted_and_nothing_twice() -> None:
    rolled(5)
    succeeded(60)
    failed_event(60)
    roll()
    at = Job.objects.get(status=Status.SUCCEEDED).finished_at
    same = succeeded(60)  # its transaction was open while the round before read
    Job.objects.filter(pk=same.pk).update(finished_at=at)
    succeeded(150)
    failed_event(200)
    roll()
    roll()
    assert counted() == counted(HOUR) == {"succeeded": 3, "failed": 2}


def test_failed_and_requeued_within_a_minute_is_counted() -> None:
    rolled(5)
    row = make()
    claim = Claim(row, "default", database_now())
    lifecycle.fail(claim, "w", Reason.ERROR, "x", "", error_class="ValueError")
    lifecycle.requeue([row.pk], "default", actor="ada")
    row.refresh_from_db()
    lifecycle.succeed(Claim(row, "default", database_now()), "w", None)
    if connection.vendor == "sqlite":
        JobEvent.objects.update(at=Now() - datetime.timedelta(seconds=1))
        Job.objects.update(finished_at=Now() - datetime.timedelta(seconds=1))
    roll()
    assert counted() == {"failed": 1, "succeeded": 1}


def test_what_was_counted_does_not_sink() -> None:
    rolled(5)
    rows = [succeeded(60) for _ in range(2)]
    Job.objects.update(finished_at=rows[0].finished_at)
    roll()
    lifecycle.requeue([rows[0].pk], "default", actor="ada")
    roll()
    assert counted() == counted(HOUR) == {"succeeded": 2}


@override_settings(RELIABLE_JOBS={"RETENTION": {"succeeded": 0, "failed": 0}})
def test_nothing_is_pruned_before_it_has_been_counted() -> None:
    rolled(20)
    kept = succeeded(400)
    gone = succeeded(30 * 60)
    StatState.objects.update(rolled=Now() - datetime.timedelta(minutes=20))
    assert statistics.counted_until("default") < kept.finished_at
    pruner.prune_batch("default", Status.SUCCEEDED, 0, set(), 100)
    assert set(Job.objects.values_list("pk", flat=True)) == {kept.pk}
    assert gone.pk != kept.pk
    pruner.prune()  # counts first
    assert not Job.objects.exists()
    assert counted() == {"succeeded": 1}


def test_what_is_older_than_it_is_kept_goes() -> None:
    rolled(5)
    now = database_now()
    for span, hours in ((MINUTE, 47), (MINUTE, 49), (HOUR, 49), (HOUR, 24 * 31)):
        at = now - datetime.timedelta(hours=hours)
        Stat.objects.create(span=span, at=at, task="t", queue="q", ending="failed", n=hours)
    statistics.prune("default")
    assert sorted(Stat.objects.values_list("span", "n")) == [(MINUTE, 47), (HOUR, 49)]


@pytest.mark.servers
def test_two_rollers_do_not_count_twice_nor_wait(stack: Stack) -> None:
    rolled(5)
    succeeded(60)
    other = Transaction(lambda: list(StatState.objects.select_for_update()))
    roll()
    assert counted() == {}
    other.end()
    roll()
    assert counted() == {"succeeded": 1}


@pytest.mark.servers
@pytest.mark.parametrize("statement", range(1, 12))
def test_a_round_that_is_broken_off_is_made_again(stack: Stack, statement: int) -> None:
    rolled(5)
    succeeded(60)
    failed_event(60)
    left = [statement]

    def killed(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return execute(sql, params, many, context)

    with connection.execute_wrapper(killed):
        try:
            roll()
        except KeyboardInterrupt:
            connection.close()  # the process has gone, and its transaction with it
            assert counted() == {}
    roll()
    assert counted() == counted(HOUR) == {"succeeded": 1, "failed": 1}


def test_the_sweep_loop_counts() -> None:
    statistics._next_try.clear()
    loop = SweepLoop(app, actor="test", interval=None, keep_connections=True)
    loop.once()
    assert statistics.counted_until("default") is not None
    rolled(5)
    succeeded(60)
    loop.once()
    assert counted() == {}, "this process has tried within the last minute"
    statistics._next_try.clear()
    loop.once()
    assert counted() == {"succeeded": 1}
