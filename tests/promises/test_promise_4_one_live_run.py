"""I4: one live run per job. The row's lock says so for atomic tasks, lease and token for the others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from django.db import transaction

from reliable_jobs import lifecycle
from reliable_jobs.models import Job
from tests.support.harness import Stack, Transaction, lines, wait_until
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.promise("I4")]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("send", [1, 2], ids=["first send", "committed claim"])
def test_of_five_copies_at_once_one_runs(
    stack: Stack, idle_queue: str, outside: Path, gate: Path, pool: str, send: int
) -> None:
    job = stack.row_only(tasks.gated, "once", str(outside), str(gate))
    stack.publish(job, copies=5, send=send)
    worker = stack.worker(pool=pool, concurrency=5)
    worker.wait_for_line(" ignored", 4)
    gate.touch()
    job = stack.ends(job)
    wait_until(lambda: "succeeded in" in worker.log, "the one that runs ends")
    assert len(lines(outside)) == 1
    assert stack.effects("once") == 1
    assert (job.failures, job.crashes, job.epoch) == (0, 0, 1 if send == 1 else 2)


def test_of_five_copies_one_after_the_other_one_runs(stack: Stack, idle_queue: str) -> None:
    job = stack.row_only(tasks.effect, "once")
    stack.publish(job, copies=5)
    worker = stack.worker()
    stack.ends(job)
    worker.wait_for_line(" ignored", 4)
    assert stack.effects("once") == 1
    assert "taken away" not in worker.log, "a copy has begun; its settlement undid what it wrote"


def test_copies_on_two_workers_run_once(stack: Stack, idle_queue: str) -> None:
    jobs = [stack.row_only(tasks.effect, f"number {i}") for i in range(20)]
    for job in jobs:
        stack.publish(job, copies=3)
    stack.worker(concurrency=2, wait=False)
    stack.worker(concurrency=2)
    stack.all_end()
    wait_until(lambda: stack.depth() == 0, "every copy is taken")
    assert [stack.effects(f"number {i}") for i in range(20)] == [1] * 20


@pytest.mark.parametrize("task", ["slow_outside", "returns_late"])
def test_a_worker_stopped_past_its_lease_wakes_up_to_nothing(
    stack: Stack, idle_queue: str, outside: Path, gate: Path, task: str
) -> None:
    """Non-atomic: the lease ends while the worker is stopped, another run finishes, the first one comes back."""
    first = stack.worker(LEASE=1)
    result = getattr(tasks, task).delay("once", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    token = stack.job(result).token
    assert token is not None
    first.stop()
    wait_until(lambda: stack.sweep() and len(stack.kinds(stack.job(result))) == 1, "the lease is over", every=0.1)
    assert stack.kinds(stack.job(result)) == ["rescue"]
    second = stack.worker(LEASE=30)  # it is not to lose its own while the machine is slow
    wait_until(lambda: stack.sweep() and len(lines(outside)) == 2, "another worker runs it", every=0.1)
    gate.touch()
    done = stack.ends(result)
    assert second.log.count("succeeded in") == 1 or wait_until(lambda: "succeeded in" in second.log, "it says so")
    first.cont()
    first.wait_for_line("taken away")
    after = stack.job(result)
    assert stack.effects("once") == (1 if task == "slow_outside" else 0)
    unchanged = ("status", "epoch", "worker", "result", "error", "finished_at")
    assert {name: getattr(after, name) for name in unchanged} == {name: getattr(done, name) for name in unchanged}
    assert result.state == "SUCCESS"


def test_a_non_atomic_run_keeps_its_lease_while_it_lives(
    stack: Stack, idle_queue: str, outside: Path, gate: Path
) -> None:
    stack.worker(LEASE=6)  # long enough for a worker that has no turn for some seconds
    result = tasks.slow_outside.delay("once", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    first = stack.job(result).lease_at
    assert first is not None

    def outlived() -> bool:
        assert stack.sweep().rescued == 0
        return stack.database_now() > first

    wait_until(outlived, "the first lease is over")
    assert stack.sweep().rescued == 0
    assert stack.job(result).lease_at > first, "the lease was not extended"
    gate.touch()
    job = stack.ends(result)
    assert (len(lines(outside)), job.crashes) == (1, 0)


def test_an_atomic_run_that_holds_its_row_is_never_rescued(
    stack: Stack, idle_queue: str, outside: Path, gate: Path
) -> None:
    """The committed claim: from the body's transaction on, the lock is the lease."""
    job = stack.row_only(tasks.gated, "once", str(outside), str(gate))
    stack.publish(job, send=2)
    stack.worker(LEASE=0.3)
    wait_until(lambda: lines(outside), "the body runs")
    wait_until(lambda: Job.objects.lost_runs().exists(), "the lease is over")
    assert stack.sweep().rescued == 0
    gate.touch()
    job = stack.ends(job)
    assert (len(lines(outside)), stack.effects("once"), job.crashes) == (1, 1, 0)


def test_an_old_claim_can_write_nothing(stack: Stack) -> None:
    """The fence itself: what an epoch or a token has passed by answers that it did not win."""
    job = stack.row_only(tasks.effect, "fenced")
    old = lifecycle.claim_committed(job.pk, 0, "default", worker="first", lease=0.01)
    assert isinstance(old, lifecycle.Claim)
    wait_until(lambda: lifecycle.rescue("default", 10), "the lease is over")
    new = lifecycle.claim_committed(job.pk, 0, "default", worker="second", lease=10)
    assert isinstance(new, lifecycle.Claim)
    assert not lifecycle.succeed(old, "first", None)
    assert not lifecycle.fail(old, "first", "error", "late", "")
    assert not lifecycle.run_again(old, "first", "error")
    assert not lifecycle.extend_lease(old, 10)
    assert stack.job(job.pk).status == "running"
    assert lifecycle.succeed(new, "second", None)
    assert stack.job(job.pk).worker == "second"


def test_a_claim_waits_for_a_copy_that_only_looks_at_its_row(stack: Stack) -> None:
    """Skipping the row then left the claim to its lease, and counted a crash that never happened."""
    job = stack.row_only(tasks.effect, "once")
    claim = lifecycle.claim_committed(job.pk, 0, "default", worker="first", lease=10)
    assert isinstance(claim, lifecycle.Claim)
    copy = Transaction(lambda: list(Job.objects.filter(pk=job.pk).lock()))
    assert copy.answer == [job], "the copy was to hold the lock"
    end = threading.Timer(0.3, copy.end)
    end.start()
    with transaction.atomic():
        assert lifecycle.lock_by_token(claim)
    end.join()


def test_a_claim_without_a_token_is_fenced_by_the_epoch_alone(stack: Stack) -> None:
    """An atomic run whose connection was lost settles in a new transaction: by then the row may have moved on, and
    come back to waiting."""
    job = stack.row_only(tasks.effect, "fenced")
    with transaction.atomic():
        old = lifecycle.claim_atomic(job.pk, 0, "default")
    assert isinstance(old, lifecycle.Claim)
    assert lifecycle.requeue([job.pk], "default", actor="somebody").done == [job.pk]
    assert not lifecycle.fail(old, "first", "error", "late", "")
    assert stack.job(job.pk).status == "waiting"
