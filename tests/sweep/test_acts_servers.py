"""Acts on many jobs and pauses against real workers (S4)."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db.models import Count

from reliable_jobs import jobs, lifecycle
from reliable_jobs.models import ActState, BulkAct, Job, JobEvent, Selection
from reliable_jobs.schedule import create_periodic_tasks
from reliable_jobs.status import EventKind, Status
from reliable_jobs.sweep import acts
from tests.support.harness import Stack, Transaction, lines, wait_until
from tests.testapp import tasks

pytestmark = [pytest.mark.servers]

#: More than one step of an act.
MANY = 1200


@pytest.mark.slow
@pytest.mark.parametrize("who", ["prefork", "solo", "beat"])
def test_a_cancel_of_all_ends_while_every_worker_is_busy(
    stack: Stack, idle_queue: str, outside: Path, gate: Path, who: str
) -> None:
    """It waits in no queue: a worker's parent process sweeps, a thread beside a solo worker's function, or beat."""
    sweeps = 0 if who == "beat" else 0.2
    stack.worker(pool="solo" if who == "solo" else "prefork", concurrency=1, WORKER_SWEEP_INTERVAL=sweeps)
    busy = tasks.gated.delay("busy", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the only slot is busy")
    tasks.effect.bulk_delay([(f"cancelled {number}",) for number in range(MANY)], countdown=600)
    act = acts.begin(Selection(state="waiting", queue=idle_queue), "default", verb="cancel", actor="Grace")
    if who == "beat":
        create_periodic_tasks()
        stack.beat()
    wait_until(lambda: BulkAct.objects.get(pk=act.pk).state == ActState.DONE, "the act is done")
    assert not gate.exists()
    act.refresh_from_db()
    assert (act.done, act.skipped) == (MANY, 1), "all but the job that runs"
    gate.touch()
    assert stack.ends(busy).status == Status.SUCCEEDED
    assert Job.objects.filter(status=Status.CANCELLED).count() == MANY
    assert not JobEvent.objects.exclude(kind=EventKind.CANCEL).exists()


def test_requeued_jobs_that_fail_at_once_are_each_requeued_once(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "STEP", 7)
    stack.worker(concurrency=2)
    tasks.fails.bulk_delay([(f"job {number}",) for number in range(40)])
    stack.all_end("failed")
    act = acts.begin(Selection(state="failed", task=tasks.fails.name), "default", verb="requeue", actor="Grace")

    def again() -> bool:
        acts.sweep("default")
        stack.sweep()
        return not Job.objects.unfinished().exists()

    wait_until(again, "the act and the jobs have ended")
    act.refresh_from_db()
    assert (act.state, act.done) == (ActState.DONE, 40)
    failures = JobEvent.objects.filter(kind=EventKind.FAILURE).values("job").annotate(number=Count("*"))
    assert set(failures.values_list("number", flat=True)) == {2}
    assert set(Job.objects.values_list("status", "requeues")) == {("failed", 1)}


@pytest.mark.parametrize("kind", ["queue", "task"])
def test_a_pause_that_commits_between_insert_and_commit_holds(stack: Stack, idle_queue: str, kind: str) -> None:
    worker = stack.worker()
    paused = {kind: idle_queue if kind == "queue" else tasks.effect.name}
    enqueue = Transaction(lambda: tasks.effect.delay("held"))
    jobs.pause(actor="Grace", **paused)
    enqueue.end()
    job = stack.job(enqueue.answer)
    wait_until(lambda: Job.objects.get(pk=job.pk).sends == 0, "the worker was refused the job")
    assert stack.effects("held") == 0
    assert worker.alive
    jobs.resume(**paused)
    stack.ends(job, sweeping=True)
    assert stack.effects("held") == 1
    assert stack.kinds(job) == []


def test_a_worker_that_starts_under_a_pause_starts_nothing(stack: Stack, idle_queue: str) -> None:
    held = [stack.job(tasks.effect.delay(f"held {number}")) for number in range(5)]
    jobs.pause(queue=idle_queue, actor="Grace")
    stack.worker(WORKER_SWEEP_INTERVAL=0.1)
    wait_until(lambda: not Job.objects.filter(sends__gt=0).exists(), "each message has met the pause")
    assert {job.status for job in Job.objects.all()} == {Status.WAITING}
    assert lifecycle.paused("default")[0].name == idle_queue
    wait_until(lambda: stack.depth() == 0, "the last of them is acknowledged")
    jobs.resume(queue=idle_queue)
    stack.all_end()
    assert [stack.effects(f"held {number}") for number in range(len(held))] == [1] * len(held)
