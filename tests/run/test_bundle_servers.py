"""Bundles on a real worker: what becomes of the neighbours when one of them kills the process, stalls or commits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult
from django.db import transaction

from reliable_jobs.models import Job
from tests.support.harness import PATIENCE, Stack, lines, wait_until
from tests.testapp import tasks

pytestmark = pytest.mark.servers


def enqueue(outside: Path, *whats: str) -> list[AsyncResult[Any]]:
    with transaction.atomic():
        return [tasks.small.delay(f"small {number}", str(outside), what) for number, what in enumerate(whats)]


def check_neighbours(stack: Stack, results: list[AsyncResult[Any]], odd: int) -> None:
    for number, result in enumerate(results):
        if number != odd:
            job = stack.job(result)
            assert (job.status, job.failures, job.crashes) == ("succeeded", 0, 0), (job.error, stack.kinds(job))
            assert stack.effects(f"small {number}") == 1


@pytest.mark.promise("I3")
def test_a_bundle_on_a_worker_is_one_message_and_every_job_succeeds(stack: Stack, outside: Path) -> None:
    worker = stack.worker()
    enqueue(outside, *[""] * 20)
    stack.all_end()
    worker.wait_for_line("20 of 20 jobs of tests.testapp.tasks.small")
    assert sorted(line.split(" ")[1] for line in lines(outside)) == sorted(map(str, range(20)))
    assert worker.log.count("] received") == 1


@pytest.mark.promise("I2")
def test_a_child_killed_in_a_bundle_undoes_it_and_the_jobs_run_alone(
    stack: Stack, idle_queue: str, outside: Path
) -> None:
    results = enqueue(outside, "", "", "wait", "")
    worker = stack.worker()
    wait_until(lambda: len(lines(outside)) == 3, "the third body runs")
    worker.kill9_child(lines(outside)[2].split(" ")[-1])
    Path(f"{outside}.gate").touch()
    stack.all_end()
    assert set(Job.objects.values_list("sends", flat=True)) == {2}
    check_neighbours(stack, results, odd=-1)


@pytest.mark.promise("I6")
def test_one_that_kills_its_process_is_found_and_its_neighbours_finish(
    stack: Stack, idle_queue: str, outside: Path
) -> None:
    results = enqueue(outside, "", "", "die", "", "")
    worker = stack.worker(MAX_CRASHES=2)  # a short lease would blame a slow neighbour

    def all_ended() -> bool:
        worker.restart_if_dead()
        stack.sweep()
        return not Job.objects.unfinished().exists()

    wait_until(all_ended, "all jobs end", 2 * PATIENCE, every=0.2)
    poison = stack.job(results[2])
    assert (poison.status, poison.reason, stack.effects("small 2")) == ("failed", "crash", 0)
    check_neighbours(stack, results, odd=2)


@pytest.mark.promise("I3")
@pytest.mark.parametrize("what", ["commit", "deferred", "left open", "reconnect"])
def test_one_that_ends_the_transaction_or_breaks_a_constraint_fails_alone(
    stack: Stack, idle_queue: str, outside: Path, what: str
) -> None:
    results = enqueue(outside, "", "", what, "")
    stack.worker()
    wait_until(lambda: not Job.objects.unfinished().exists(), "all jobs end")
    assert stack.job(results[2]).status == "failed"
    check_neighbours(stack, results, odd=2)


@pytest.mark.promise("I6")
def test_a_bundle_over_its_hard_time_limit_is_run_job_by_job(stack: Stack, idle_queue: str, outside: Path) -> None:
    with transaction.atomic():
        results = [tasks.small_but_slow.delay(f"small {number}", str(outside)) for number in range(6)]
    worker = stack.worker()
    stack.all_end()
    assert "Hard time limit (2s) exceeded for reliable_jobs.bundle" in worker.log
    check_neighbours(stack, results, odd=-1)


@pytest.mark.promise("I7")
def test_a_revoked_one_is_cancelled_and_its_neighbours_run(stack: Stack, idle_queue: str, outside: Path) -> None:
    results = enqueue(outside, "wait", "")
    waiting = enqueue(outside, "wait", "", "")
    stack.worker(WORKER_SWEEP_INTERVAL=0.2)
    wait_until(lambda: lines(outside), "the first bundle runs")
    waiting[1].revoke()
    wait_until(lambda: stack.job(waiting[1]).status == "cancelled", "the revoked job is cancelled")
    Path(f"{outside}.gate").touch()
    stack.all_end_but("cancelled")
    assert [stack.job(result).status for result in (*results, *waiting)].count("cancelled") == 1
