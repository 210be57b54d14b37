"""I6: every loop is bounded, says why it ended, and blames nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from django_celery_results.models import TaskResult

from reliable_jobs.models import Job
from tests.support.harness import PATIENCE, Stack, Worker, lines, wait_until
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.promise("I6")]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_job_that_kills_its_process_fails_and_its_neighbours_finish(
    stack: Stack, idle_queue: str, outside: Path, pool: str
) -> None:
    neighbours = [tasks.effect.delay(f"neighbour {i}") for i in range(4)]
    poison = tasks.kills_itself.delay(str(outside))
    neighbours += [tasks.effect.delay(f"neighbour {i}") for i in range(4, 8)]
    worker = stack.worker(pool=pool, concurrency=2, MAX_CRASHES=2)  # a short lease would blame a slow neighbour

    def ended() -> Job | None:
        worker.restart_if_dead()
        stack.sweep()
        return Job.objects.filter(pk=poison.id, status="failed").first()

    job = wait_until(ended, "the poison job is given up", 2 * PATIENCE, every=0.2)
    assert job.reason == "crash"
    assert "MAX_CRASHES=2" in job.error
    assert 2 <= len(lines(outside)) <= 3, "the first start, which nobody counts, and two that are counted"
    wait_until(lambda: TaskResult.objects.filter(task_id=poison.id, status="FAILURE").exists(), "Celery hears of it")

    def all_done() -> bool:
        worker.restart_if_dead()
        stack.sweep()
        return not Job.objects.unfinished().exists()

    wait_until(all_done, "the neighbours finish", every=0.2)
    # Threads die with their process. One whose message had come back may have been killed in a counted start; once:
    # from then on it is a suspect, and these run alone.
    most = 1 if pool == "threads" else 0
    for i, result in enumerate(neighbours):
        neighbour = stack.job(result)
        assert (neighbour.status, neighbour.failures) == ("succeeded", 0)
        assert neighbour.crashes <= most
        assert stack.effects(f"neighbour {i}") == 1


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_b1_a_hook_that_kills_its_process_before_the_run_ends_its_job(
    stack: Stack, idle_queue: str, outside: Path, pool: str
) -> None:
    poison = tasks.kills_before_start.delay(str(outside))
    worker = stack.worker(pool=pool, LEASE=0.5, MAX_CRASHES=2)

    def ended() -> Job | None:
        worker.restart_if_dead()
        stack.sweep()
        return Job.objects.filter(pk=poison.id, status="failed").first()

    job = wait_until(ended, "it is given up", 2 * PATIENCE, every=0.2)
    assert (job.reason, job.failures) == ("crash", 0)
    assert 2 <= len(lines(outside)) <= 3, "the first start, which nobody counts, and two that are counted"
    if pool == "prefork":
        assert "SIGKILL" in job.error
    worker.restart_if_dead()
    stack.ends(tasks.effect.delay("the worker lives on"), sweeping=True)


def test_jobs_that_die_beside_a_poisonous_one_are_not_condemned_with_it(
    stack: Stack, idle_queue: str, outside: Path
) -> None:
    """In a thread pool every body of the process dies with it."""
    names = [f"neighbour-{i}" for i in range(3)]
    neighbours = [tasks.takes_a_while.delay(name, str(outside)) for name in names]
    poison = tasks.kills_its_company.delay(str(outside), len(names))
    worker = stack.worker(pool="threads", concurrency=4, LEASE=0.5, MAX_CRASHES=2)

    def all_ended() -> bool:
        worker.restart_if_dead()
        stack.sweep()
        return not Job.objects.unfinished().exists()

    wait_until(all_ended, "all jobs end", 2 * PATIENCE, every=0.2)
    log = lines(outside)
    assert len(log) > len(set(log)) + 1, "nobody died beside the poison"
    assert stack.job(poison).reason == "crash"
    for name, result in zip(names, neighbours, strict=True):
        job = stack.job(result)
        assert (job.status, job.failures, stack.effects(name)) == ("succeeded", 0, 1), (job.error, stack.kinds(job))


def test_a_job_that_kills_its_process_only_at_first_succeeds(stack: Stack, idle_queue: str, outside: Path) -> None:
    stack.worker(LEASE=0.5)
    result = tasks.kills_first.delay("forgiven", str(outside), 2)
    job = stack.ends(result, sweeping=True)
    assert len(lines(outside)) == 3
    assert stack.effects("forgiven") == 1
    assert job.failures == 0
    assert "rescue" in stack.kinds(job)


@pytest.mark.parametrize("atomic", [True, False])
def test_a_job_over_its_hard_time_limit_is_killed_recorded_and_bounded(
    stack: Stack, idle_queue: str, outside: Path, atomic: bool
) -> None:
    worker = stack.worker(MAX_CRASHES=1)  # a short lease would be over before the limit, on a slow machine
    result = (tasks.too_long if atomic else tasks.too_long_outside).delay(str(outside))
    if atomic:
        wait_until(
            lambda: len(lines(outside)) == 2, "the message goes back, and the job is begun again without a sweep"
        )
    job = stack.ends(result, "failed", sweeping=True)
    assert job.reason == "time limit"
    assert "hard time limit of 3" in job.error
    assert 1 <= len(lines(outside)) <= 2
    assert "time limit" in stack.kinds(job)
    assert worker.alive
    stack.ends(tasks.effect.delay("after it"), sweeping=True)


def test_sys_exit_fails_the_job_and_not_the_worker(stack: Stack, worker: Worker) -> None:
    job = stack.ends(tasks.exits.delay(3), "failed")
    assert "sys.exit(3)" in job.error
    assert (job.reason, job.crashes) == ("error", 0)
    stack.ends(tasks.effect.delay("after it"))


def test_a_memory_error_fails_the_job_and_not_the_worker(stack: Stack, worker: Worker) -> None:
    job = stack.ends(tasks.out_of_memory.delay(), "failed")
    assert "MemoryError" in job.error
    assert (job.reason, job.crashes) == ("error", 0)
    stack.ends(tasks.effect.delay("after it"))


@pytest.mark.parametrize("code", [0, 1, "text"])
def test_sys_exit_in_a_thread_pool_fails_the_job_and_not_the_worker(
    stack: Stack, idle_queue: str, code: int | str
) -> None:
    worker = stack.worker(pool="threads")
    stack.ends(tasks.exits.delay(code), "failed")
    stack.ends(tasks.effect.delay("after it"))
    assert worker.alive


def test_retries_are_bounded(stack: Stack, idle_queue: str, outside: Path) -> None:
    stack.worker()
    job = stack.ends(tasks.always_fails.delay(str(outside)), "failed", sweeping=True)
    assert len(lines(outside)) == 3
    assert job.failures == 3
    assert stack.kinds(job) == ["failure"] * 3


def test_a_job_that_takes_its_database_session_down_is_bounded(stack: Stack, idle_queue: str, outside: Path) -> None:
    worker = stack.worker(MAX_INTERRUPTIONS=2)
    job = stack.ends(tasks.ends_its_session.delay(str(outside)), "failed", sweeping=True)
    assert job.reason == "interrupted"
    assert "MAX_INTERRUPTIONS=2" in job.error
    assert (len(lines(outside)), job.failures) == (3, 0)
    stack.ends(tasks.effect.delay("after it"))
    assert worker.alive


def test_suspects_are_started_one_at_a_time_on_a_worker(stack: Stack, idle_queue: str, outside: Path) -> None:
    """Two jobs that have crashed before must not run beside each other: one death would be blamed on both."""
    stack.worker(pool="threads", concurrency=4, LEASE=30)
    gate = outside.with_name("suspects-gate")
    jobs = [stack.row_only(tasks.gated, f"suspect {i}", str(outside), str(gate)) for i in range(3)]
    Job.objects.update(crashes=1)
    for job in jobs:
        stack.publish(job)
    wait_until(lambda: lines(outside), "the first suspect runs")
    # They were unsent before, too: only the step back counts in their epoch.
    back = Job.objects.filter(status="waiting", sends=0, epoch__gt=0)
    wait_until(lambda: back.count() == 2, "the others step back")
    assert len(lines(outside)) == 1
    gate.touch()
    for job in jobs:
        assert stack.ends(job, sweeping=True).failures == 0
    assert len(lines(outside)) == 3
