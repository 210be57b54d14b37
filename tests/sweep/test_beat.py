"""S1, K7: who sweeps. At default settings due jobs are published within 2 s with beat, within 30 s without it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from reliable_jobs.conf import Settings
from reliable_jobs.models import Job, JobQuerySet
from reliable_jobs.schedule import PRUNE_TASK, SWEEP_TASK, create_periodic_tasks
from tests.support.harness import Stack, lines, wait_until
from tests.testapp import tasks

beat = pytest.importorskip("django_celery_beat.models", reason="needs django-celery-beat")
IntervalSchedule, PeriodicTask = beat.IntervalSchedule, beat.PeriodicTask

pytestmark = [pytest.mark.servers]

DEFAULTS = Settings()
#: So long that nothing is sent again while a slow machine publishes all, in seconds.
GRACE = 600.0


@pytest.fixture
def at_default_settings(stack: Stack) -> Iterator[Stack]:
    """No shortened times for the processes that this test starts."""
    for name in ("GRACE", "LEASE", "WORKER_SWEEP_INTERVAL"):
        stack.settings.pop(name, None)
    create_periodic_tasks()
    yield stack
    stack.settings.update({"GRACE": 0.3, "LEASE": 2.0, "WORKER_SWEEP_INTERVAL": 0.0})


def waits(jobs: JobQuerySet) -> list[timedelta]:
    """How long each job sent once waited past its due time: the sweeper sets check_at to its publish plus GRACE."""
    grace = timedelta(seconds=GRACE)
    return [job.check_at - grace - job.due_at for job in jobs.filter(sends=1, check_at__isnull=False)]


@pytest.mark.slow
def test_k7_with_beat_due_jobs_are_published_in_two_seconds_though_busy(
    at_default_settings: Stack, outside: Path, gate: Path
) -> None:
    stack = at_default_settings
    stack.worker(concurrency=1, WORKER_SWEEP_INTERVAL=0)
    busy = tasks.gated.delay("busy", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the only slot is busy")
    stack.beat(GRACE=GRACE)
    # The promise is about a beat that runs. One that has just said "Starting..." still reads its schedule.
    first = stack.row_only(tasks.add, 1, 1)
    wait_until(lambda: Job.objects.filter(pk=first.pk, sends=1).exists(), "beat sweeps")
    count = 100
    for number in range(count):
        tasks.add.apply_async((number, 0), countdown=2.0 + number / 10)
    delayed = Job.objects.exclude(pk__in=[busy.id, first.pk])
    wait_until(lambda: not delayed.filter(sends=0).exists(), "all are published")
    found = sorted(waits(delayed))
    assert len(found) == count  # once each: the sweep does not copy what waits
    # Ten jobs a second come due. A machine that stands still for three seconds once delays ten of them over the bound;
    # a sweep that comes too seldom delays half.
    assert found[count // 2] < timedelta(seconds=1), found
    assert found[count * 9 // 10 - 1] < timedelta(seconds=2), found[-20:]
    assert not gate.exists()
    gate.touch()
    stack.all_end()


@pytest.mark.slow
def test_k7_without_beat_the_fallback_publishes_in_thirty_seconds(
    at_default_settings: Stack, outside: Path, gate: Path
) -> None:
    stack = at_default_settings
    stack.worker(concurrency=1)
    tasks.gated.delay("busy", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the only slot is busy")
    job = stack.job(tasks.add.apply_async((1, 2), countdown=0.5))
    wait_until(lambda: Job.objects.filter(pk=job.pk, sends=1).exists(), "it is published")
    gate.touch()
    stack.all_end()


def test_s1_beats_row_sets_the_interval_and_disabled_stops_the_sweep(
    at_default_settings: Stack,
) -> None:
    stack = at_default_settings
    row = PeriodicTask.objects.get(task=SWEEP_TASK)
    assert (row.interval.every, row.interval.period) == (DEFAULTS.SWEEP_INTERVAL, IntervalSchedule.SECONDS)
    row.enabled = False
    row.save()
    # Beat has had the row's time several times over once another of its entries, every second, has come three times.
    every_second, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.create(name="tick", task="tests.testapp.tasks.add", args="[1, 1]", interval=every_second)
    beat = stack.beat()
    first = stack.row_only(tasks.add, 1, 1)
    wait_until(lambda: beat.log.count("Sending due task tick") >= 3, "beat has ticked")
    assert Job.objects.get(pk=first.pk).sends == 0
    row.enabled = True
    row.save()
    wait_until(lambda: Job.objects.filter(pk=first.pk, sends=1).exists(), "the sweep goes on")
    PeriodicTask.objects.filter(name="tick").delete()


def test_s1_a_sweep_tick_in_beat_is_no_message_in_the_queue(at_default_settings: Stack, idle_queue: str) -> None:
    stack = at_default_settings
    beat = stack.beat()
    beat.wait_for_line("beat: Starting...")
    job = stack.row_only(tasks.add, 1, 1)
    wait_until(lambda: Job.objects.filter(pk=job.pk, sends=1).exists(), "it is published")
    sent: list[str] = []

    def has_come() -> bool:
        sent.extend(message.headers["task"] for message in stack.take_messages())
        return tasks.add.name in sent

    wait_until(has_come, "its message is there")
    # The pruner's is one, every ten minutes.
    assert [name for name in sent if name != PRUNE_TASK] == [tasks.add.name]


def test_w4_the_sweep_can_be_called_as_a_task_as_well(stack: Stack) -> None:
    from reliable_jobs.tasks import sweep

    stack.worker()
    job = stack.row_only(tasks.add, 1, 1)
    sweep.delay()
    stack.ends(job)
