"""Adaptive delivery on real workers: what becomes of the neighbours when one of a message's jobs kills the process,
blocks, or is terminated, and when the worker is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chord
from celery.result import AsyncResult
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from reliable_jobs.dispatch import bundles, run_times
from reliable_jobs.models import Job, JobEvent, Stat
from reliable_jobs.models.statistics import HOUR
from tests.celery_app import app
from tests.contract.hearing import Events
from tests.support.harness import PATIENCE, Stack, lines, wait_until
from tests.testapp import tasks

pytestmark = pytest.mark.servers


@pytest.fixture(autouse=True)
def _all_in_one_message(stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bundles, "ENOUGH", 2)
    monkeypatch.setattr(bundles, "MESSAGES", 1)
    names = ("tests.testapp.tasks.shares_its_message", "tests.testapp.tasks.effect")
    for name in names:
        at, counts = timezone.now().replace(minute=0, second=0, microsecond=0), {"n": 100, "r0": 100}
        Stat.objects.create(span=HOUR, at=at, task=name, queue="q", ending="succeeded", release="", **counts)
    run_times.forget()
    with override_settings(RELIABLE_JOBS={**stack.settings, "GRACE": 60.0}):
        yield
    run_times.forget()


def enqueue(outside: Path, *whats: str) -> list[AsyncResult[Any]]:
    with transaction.atomic():
        return [
            tasks.shares_its_message.delay(f"shares {number}", str(outside), what) for number, what in enumerate(whats)
        ]


def check(stack: Stack, results: list[AsyncResult[Any]], *odd: int) -> None:
    """All but the odd ones have succeeded, once, and nobody blames them."""
    for number, result in enumerate(results):
        if number not in odd:
            job = stack.job(result)
            said = (job.error, stack.kinds(job))
            assert (job.status, job.failures, job.crashes, job.interruptions) == ("succeeded", 0, 0, 0), said
            assert not {"crash", "time limit"} & set(stack.kinds(job)), said
            assert stack.effects(f"shares {number}") == 1


def ended(*but: AsyncResult[Any]) -> bool:
    return not Job.objects.unfinished().exclude(pk__in=[result.id for result in but]).exists()


@pytest.mark.promise("I3")
def test_one_message_carries_jobs_that_each_have_a_transaction(stack: Stack, outside: Path) -> None:
    results = enqueue(outside, *[""] * 20)
    worker = stack.worker(TEST_LONGEST=PATIENCE)
    stack.all_end()
    worker.wait_for_line("20 of 20 jobs of tests.testapp.tasks.shares_its_message")
    assert [line.split(" ")[1] for line in lines(outside)] == list(map(str, range(20)))
    assert worker.log.count("] received") == 1
    assert worker.log.count("Task tests.testapp.tasks.shares_its_message") == 20, "each is told"
    assert Job.objects.values("finished_at").distinct().count() == 20
    assert set(Job.objects.values_list("sends", flat=True)) == {1}
    check(stack, results)


@pytest.mark.promise("I2")
@pytest.mark.parametrize("whom", ["child", "worker"])
def test_after_a_kill_what_was_done_stays_and_the_rest_runs_alone(stack: Stack, outside: Path, whom: str) -> None:
    results = enqueue(outside, "", "", "wait", "", "")
    worker = stack.worker()
    wait_until(lambda: len(lines(outside)) == 3, "the third function runs", every=0.01)
    if whom == "child":
        worker.kill9_child(lines(outside)[2].split(" ")[-1])
    else:
        worker.kill9()
    Path(f"{outside}.gate").touch()
    if whom == "worker":
        stack.worker()
    stack.all_end()  # without a sweep
    check(stack, results)
    assert [line.split(" ")[1] for line in lines(outside)].count("0") == 1
    assert stack.job(results[0]).sends == 1


@pytest.mark.promise("I6")
def test_one_that_kills_its_process_is_found_and_blamed_alone(stack: Stack, outside: Path) -> None:
    results = enqueue(outside, "", "", "die", "", "")
    worker = stack.worker(MAX_CRASHES=2)  # a short lease would blame a slow neighbour

    def all_ended() -> bool:
        worker.restart_if_dead()
        stack.sweep()
        return ended()

    wait_until(all_ended, "all jobs end", 2 * PATIENCE, every=0.2)
    poison = stack.job(results[2])
    assert (poison.status, poison.reason, stack.effects("shares 2")) == ("failed", "crash", 0)
    check(stack, results, 2)


@pytest.mark.promise("I2")
@pytest.mark.parametrize("how", ["term", "quit"])
def test_a_worker_stopped_in_the_middle_loses_and_doubles_nothing(stack: Stack, outside: Path, how: str) -> None:
    results = enqueue(outside, "", "wait", "", "", "")
    worker = stack.worker(TEST_LONGEST=PATIENCE)  # or the second might be sent alone, on a slow machine
    wait_until(lambda: len(lines(outside)) == 2, "the second function runs")
    getattr(worker, how)()
    if how == "term":
        worker.wait_for_line("Warm shutdown")
        assert worker.alive
    Path(f"{outside}.gate").touch()
    assert worker.wait() == 0 or how == "quit"
    if how == "term":
        assert stack.job(results[1]).status == "succeeded"
        assert stack.job(results[1]).sends == 1
    stack.worker()
    wait_until(lambda: stack.sweep() and ended(), "all jobs end")
    check(stack, results, 1)
    assert (stack.job(results[1]).status, stack.job(results[1]).crashes) == ("succeeded", 0)
    assert stack.effects("shares 1") == 1


@pytest.mark.promise("I4")
def test_behind_one_that_outlives_its_lease_the_others_run_elsewhere(stack: Stack, outside: Path) -> None:
    results = enqueue(outside, "", "wait", "", "", "")
    # Its lease is over before the others are sent alone, and both are longer than a slow machine stands still.
    stack.worker(concurrency=2, LEASE=2.0, GRACE=60.0, TEST_LONGEST=5.0)

    def others_ended() -> bool:
        stack.sweep()
        return ended(results[1])

    wait_until(others_ended, "the others end while it runs")
    wait_until(lambda: len(lines(outside)) == 5, "each was begun")
    assert stack.job(results[1]).status == "waiting"
    Path(f"{outside}.gate").touch()
    stack.all_end()
    check(stack, results)
    assert [stack.job(result).sends for result in results[:2]] == [1, 1]
    assert len(lines(outside)) == 5, "no function ran twice"


@pytest.mark.promise("I6")
def test_the_command_lines_hard_limit_kills_one_job_and_says_so(stack: Stack, outside: Path) -> None:
    results = enqueue(outside, "", "wait", "", "")
    worker = stack.worker(options=["--time-limit", "10"], MAX_CRASHES=1, LEASE=0.5)
    wait_until(lambda: stack.kinds(stack.job(results[1])) == ["time limit"], "the first death is told")
    assert "Hard time limit (11" in worker.log
    wait_until(lambda: ended(results[1]), "the others end")
    check(stack, results, 1)
    wait_until(lambda: stack.sweep() and ended(), "it is given up", every=0.2)
    job = stack.job(results[1])
    assert (job.status, job.reason) == ("failed", "time limit")
    check(stack, results, 1)


@pytest.mark.promise("I7")
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
@pytest.mark.parametrize("which", [1, 3], ids=["the one that runs", "one that waits behind it"])
def test_terminate_ends_one_job(stack: Stack, outside: Path, which: int, pool: str) -> None:
    results = enqueue(outside, "", "wait", "", "", "")
    stack.worker(pool=pool, concurrency=2, TEST_LONGEST=PATIENCE)  # so that none is sent alone before
    wait_until(lambda: len(lines(outside)) == 2, "the second function runs", every=0.01)
    app.control.revoke(results[which].id, terminate=True, signal="SIGTERM")
    wait_until(lambda: stack.job(results[which]).status == "cancelled", "it is cancelled")
    if which == 3:
        assert len(lines(outside)) == 2, "nothing was killed"
    Path(f"{outside}.gate").touch()
    wait_until(lambda: stack.sweep() and ended(), "the others end")
    check(stack, results, which)
    assert stack.effects(f"shares {which}") == 0


def test_a_rate_limit_by_remote_control_takes_a_message_apart(stack: Stack, outside: Path) -> None:
    stack.worker()
    (told,) = app.control.rate_limit(tasks.shares_its_message.name, "1/h", reply=True, timeout=PATIENCE, limit=1)
    assert "ok" in next(iter(told.values()))
    results = enqueue(outside, *[""] * 4)
    wait_until(lambda: Job.objects.filter(sends=2).count() == 4, "each is sent alone")
    wait_until(lambda: "succeeded" in {stack.job(result).status for result in results}, "one has its turn")
    assert len(lines(outside)) == 1


@pytest.mark.promise("I3")
@pytest.mark.parametrize("pool", ["prefork", "gevent", "threads", "solo"])
def test_every_kind_of_end_in_one_message(stack: Stack, outside: Path, pool: str) -> None:
    whats = ["", "fail", "", "retry", "", "snooze", ""]
    with transaction.atomic():
        results = enqueue(outside, *whats)
        body = tasks.effect.si("the body")
        parts = [tasks.shares_its_message.si(f"part {number}", str(outside)) for number in range(5)]
        joined = chord(parts, body).delay()
        linked = tasks.shares_its_message.apply_async(("linked", str(outside)), link=tasks.effect.si("the callback"))
    worker = stack.worker(pool=pool, TEST_LONGEST=PATIENCE)
    wait_until(lambda: stack.sweep() and ended(), "all jobs end")
    assert stack.job(results[1]).status == "failed"
    assert set(Job.objects.exclude(pk=results[1].id).values_list("status", flat=True)) == {"succeeded"}
    assert joined.get(timeout=5) == "the body"
    assert linked.get(timeout=5) == "linked"
    once = [f"shares {number}" for number in (0, 2, 3, 4, 6)] + ["the body", "the callback", "linked"]
    assert [stack.effects(name) for name in [*once, *(f"part {number}" for number in range(5))]] == [1] * 13
    assert stack.effects("shares 1") == 0
    assert JobEvent.objects.filter(kind="crash").count() == 0
    worker.wait_for_line("13 of 13 jobs of tests.testapp.tasks.shares_its_message")


#: Of an event: what differs from one job to the next, or from one moment to the next.
_OWN = ("uuid", "root_id", "timestamp", "local_received", "clock", "runtime", "args", "kwargs", "traceback")


def test_monitors_hear_of_each_job_as_if_it_had_come_alone(
    stack: Stack, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whats = ["", "fail", "retry", "snooze", ""]
    events = Events()
    with events.listening():
        shared = enqueue(outside, *whats)
        monkeypatch.setattr(bundles, "ENOUGH", 1000)
        alone = enqueue(Path(f"{outside}.alone"), *whats)
        worker = stack.worker(options=["-E"], WORKER_SWEEP_INTERVAL=0.2)
        last = {1: "task-failed"}

        def told(results: list[AsyncResult[Any]]) -> bool:
            ends = [[event["type"] for event in events.by_task.get(result.id, [])] for result in results]
            return all(last.get(number, "task-succeeded") in kinds for number, kinds in enumerate(ends))

        wait_until(lambda: ended() and told(shared) and told(alone), "all has been told", every=0.1)
    worker.wait_for_line("5 of 5 jobs of tests.testapp.tasks.shares_its_message")

    def story(result: AsyncResult[Any]) -> list[dict[str, Any]]:
        heard = sorted(events.by_task[result.id], key=lambda event: event["timestamp"])
        assert {event["root_id"] for event in heard if event["type"] == "task-received"} == {result.id}
        return [{name: value for name, value in event.items() if name not in (*_OWN, "pid")} for event in heard]

    for one, other in zip(shared, alone, strict=True):
        assert story(one) == story(other)
        assert {name for event in events.by_task[one.id] for name in event} == {
            name for event in events.by_task[other.id] for name in event
        }
    told_args = next(event["args"] for event in events.by_task[shared[0].id] if event["type"] == "task-received")
    assert "shares 0" in told_args


def test_a_monitor_hears_that_a_slow_job_has_started(stack: Stack, outside: Path) -> None:
    events = Events()
    with events.listening():
        results = enqueue(outside, "", "wait", "", "")
        stack.worker(options=["-E"])
        wait_until(lambda: len(lines(outside)) == 2, "the second function runs")
        wait_until(
            lambda: (
                [event["type"] for event in events.by_task.get(results[1].id, [])] == ["task-received", "task-started"]
            ),
            "it is told while it runs",
        )
        Path(f"{outside}.gate").touch()
        stack.all_end()
    check(stack, results)


@pytest.mark.promise("I3")
def test_two_hundred_jobs_and_five_kills_have_their_effects_once(
    stack: Stack, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "ENOUGH", 20)  # as by default not fewer than the messages: what is left goes alone
    monkeypatch.setattr(bundles, "MESSAGES", 10)
    whats = ["fail" if number % 10 == 3 else "retry" if number % 10 == 7 else "" for number in range(200)]
    whats[55] = "die"
    results = enqueue(outside, *whats)
    worker = stack.worker(concurrency=2, LEASE=0.5, MAX_CRASHES=3)
    killed = 0

    def all_ended() -> bool:
        nonlocal killed
        done = lines(outside)
        if killed < 5 and len(done) > 20 * (killed + 1):  # half of them are left, so that none comes too late
            # The last to write may be the one that ended its process itself: another look finds a live one.
            with contextlib.suppress(ProcessLookupError):
                if killed == 2:
                    worker.kill9()
                else:
                    worker.kill9_child(done[-1].split(" ")[-1])
                killed += 1
        worker.restart_if_dead()
        stack.sweep()
        return ended()

    wait_until(all_ended, "all jobs end", 3 * PATIENCE, every=0.05)
    assert killed == 5
    jobs = [stack.job(result) for result in results]
    assert [job.status for job in jobs] == ["failed" if what in ("fail", "die") else "succeeded" for what in whats], (
        stack.state()
    )
    assert (jobs[55].reason, [job.reason for job in jobs].count("crash")) == ("crash", 1)
    expected = [0 if what in ("fail", "die") else 1 for what in whats]
    assert [stack.effects(f"shares {number}") for number in range(200)] == expected
