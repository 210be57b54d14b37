"""I2: a crash at any instruction of producer, worker, sweeper, broker or database leaves every committed unfinished job
to be finished."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import transaction
from django.test import override_settings

from reliable_jobs.clock import Now
from reliable_jobs.models import Job
from tests.support.harness import Stack, lines, wait_until
from tests.support.private_servers import CuttableProxy
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.promise("I2")]


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_killed_in_the_function_leaves_the_job_to_the_next(
    stack: Stack, idle_queue: str, outside: Path, gate: Path, pool: str
) -> None:
    doomed = stack.worker(pool=pool)
    result = tasks.gated.delay("once", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    doomed.kill9()
    gate.touch()
    stack.worker()
    job = stack.ends(result)
    assert len(lines(outside)) == 2, "the kill did not hit the body"
    assert stack.effects("once") == 1
    assert job.failures == 0


@pytest.mark.promise("I6")
def test_a_child_killed_in_the_function_gives_the_message_back(
    stack: Stack, idle_queue: str, outside: Path, gate: Path
) -> None:
    worker = stack.worker()
    result = tasks.gated.delay("once", str(outside), str(gate))
    [line] = wait_until(lambda: lines(outside), "the body runs")
    gate.touch()
    worker.kill9_child(line.split()[1])
    job = stack.ends(result)
    assert stack.effects("once") == 1
    assert (job.failures, job.crashes) == (0, 0)
    wait_until(lambda: "crash" in stack.kinds(job), "the parent saw the death and says so in the job's history")


def test_a_parent_killed_alone_leaves_the_job_to_another_worker(
    stack: Stack, idle_queue: str, outside: Path, gate: Path
) -> None:
    doomed = stack.worker()
    result = tasks.gated.delay("once", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    doomed.kill9_parent()
    stack.worker()
    gate.touch()  # the orphaned child may still finish, or not; the effect happens once
    stack.ends(result, sweeping=True)
    wait_until(lambda: stack.depth() == 0, "no message is left")
    assert stack.effects("once") == 1


def test_a_redelivered_message_is_held_until_the_killed_runs_row_is_free(
    stack: Stack, idle_queue: str, outside: Path, gate: Path, database_proxy: CuttableProxy
) -> None:
    """The killed worker's session outlives it: the network is half open, and the server still sees its transaction."""
    worker = stack.worker(database_url=database_proxy.url(stack.database_url))
    result = tasks.gated.delay("once", str(outside), str(gate))
    [line] = wait_until(lambda: lines(outside), "the body runs")
    [held] = stack.pids("state = 'idle in transaction'")
    database_proxy.blackhole(True)
    database_proxy.blackhole(False)  # old connections stay dead, new ones work
    gate.touch()
    worker.kill9_child(line.split()[1])
    worker.wait_for_line("received", 2)
    refused = "state <> 'idle in transaction' AND query IN ('ROLLBACK', 'COMMIT')"
    wait_until(lambda: stack.sessions(refused), "the redelivery found the row locked", every=0.01)
    assert stack.job(result).status == "waiting"
    in_transaction = f"pid = {held} AND state = 'idle in transaction'"
    assert stack.terminate_backends(in_transaction) == 1, "the dead run's session was to hold the row still"
    stack.ends(result)
    assert stack.effects("once") == 1


def test_a_duplicate_that_is_no_redelivery_is_dropped_while_the_job_runs(
    stack: Stack, idle_queue: str, outside: Path, gate: Path
) -> None:
    worker = stack.worker(concurrency=2)
    result = tasks.gated.delay("once", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    stack.publish(stack.job(result))
    worker.wait_for_line("ignored")
    gate.touch()
    stack.ends(result)
    assert len(lines(outside)) == 1


def test_a_sweeper_killed_before_its_publish_leaves_the_job_to_the_next(stack: Stack, idle_queue: str) -> None:
    job = stack.row_only(tasks.effect, "once")
    sweeper = stack.script(
        """
        from reliable_jobs.dispatch import publisher
        from reliable_jobs.sweep import sweeper
        publisher.Publisher.publish = lambda *args, **kwargs: pause("committed, not published")
        sweeper.sweep(app)
        """
    )
    sweeper.wait_for_line("committed, not published")
    sweeper.kill9()
    job.refresh_from_db()
    assert (job.sends, stack.depth()) == (1, 0), "the kill missed its instant"
    stack.worker()
    job = stack.ends(job, sweeping=True)
    assert stack.effects("once") == 1
    assert job.failures == 0


def test_a_sweeper_killed_before_the_confirm_sends_a_harmless_copy(stack: Stack, idle_queue: str) -> None:
    job = stack.row_only(tasks.effect, "once")
    sweeper = stack.script(
        """
        from reliable_jobs.dispatch import amqp_pipeline
        from reliable_jobs.sweep import sweeper
        amqp_pipeline.Pipeline._await_confirms = lambda self, *args, **kwargs: (
            pause("published, not confirmed") if self.tag and job_is_out(self) else None
        )
        job_is_out = lambda self: any(str(job) == str(pk) for pk in self.open_tags.values())
        from reliable_jobs.models import Job
        job = Job.objects.get().pk
        from reliable_jobs.dispatch.publisher import Publisher
        Publisher.reachable = lambda self: True
        sweeper.sweep(app)
        """
    )
    sweeper.wait_for_line("published, not confirmed")
    sweeper.kill9()
    wait_until(lambda: stack.depth() == 1, "the message is out")
    stack.sweep()
    stack.worker()
    stack.ends(job, sweeping=True)
    wait_until(lambda: stack.depth() == 0, "every copy is taken")
    assert stack.effects("once") == 1


def test_beat_alone_finishes_what_the_broker_lost(stack: Stack, idle_queue: str) -> None:
    stack.worker()
    stack.beat().wait_for_line("beat: Starting")
    job = stack.row_only(tasks.effect, "by beat")
    stack.ends(job)
    assert stack.effects("by beat") == 1


def test_without_beat_a_workers_fallback_finishes_what_the_broker_lost(stack: Stack, idle_queue: str) -> None:
    stack.worker(WORKER_SWEEP_INTERVAL=0.3)
    job = stack.row_only(tasks.effect, "by the fallback")
    stack.ends(job)
    assert stack.effects("by the fallback") == 1


def test_work_due_later_waits_in_the_database_and_survives_the_broker(stack: Stack, idle_queue: str) -> None:
    result = tasks.effect.apply_async(("later",), countdown=600)
    assert stack.depth() == 0
    stack.sweep()
    assert stack.depth() == 0, "published before it was due"
    Job.objects.update(due_at=Now())
    stack.worker()
    stack.ends(result, sweeping=True)
    assert stack.effects("later") == 1


@pytest.mark.promise("I8")
def test_a_sweep_counts_its_send_so_that_the_next_one_does_not_repeat_it(stack: Stack, idle_queue: str) -> None:
    job = stack.row_only(tasks.effect, "once")
    for _ in range(3):
        stack.sweep()
    job.refresh_from_db()
    assert (job.sends, stack.depth()) == (1, 1)


@pytest.mark.promise("I8")
def test_every_send_doubles_the_time_to_the_next_one(stack: Stack, idle_queue: str) -> None:
    job = stack.row_only(tasks.effect, "once")
    pauses = []
    # What is left of a pause after the sweep: long ones, of which a slow machine takes little.
    with override_settings(RELIABLE_JOBS={**stack.settings, "GRACE": 60.0}):
        for sends in (1, 2, 3):
            stack.purge()  # a message that waits without a consumer is not sent again
            Job.objects.filter(sends__gt=0).update(check_at=Now())
            wait_until(lambda sends=sends: stack.sweep() and stack.job(job.pk).sends == sends, f"send {sends}")
            row = Job.objects.get()
            with transaction.atomic():
                pauses.append((row.check_at - stack.database_now()).total_seconds())
    assert pauses[0] <= 60
    assert 60 < pauses[1] <= 120
    assert 120 < pauses[2] <= 240


def test_term_during_a_body_finishes_it(stack: Stack, idle_queue: str, outside: Path, gate: Path) -> None:
    """K9: a deploy's TERM is a warm shutdown."""
    worker = stack.worker()
    running = tasks.gated.delay("finished", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    queued = tasks.effect.delay("handed back")
    worker.term()
    worker.wait_for_line("Warm shutdown")
    gate.touch()
    stack.ends(running)
    assert worker.wait() == 0
    assert len(lines(outside)) == 1
    assert stack.job(queued).status == "waiting"
    stack.worker()
    stack.ends(queued)
    assert (stack.effects("finished"), stack.effects("handed back")) == (1, 1)


def test_a_cold_shutdown_in_a_body_hands_the_job_to_the_next_worker(
    stack: Stack, idle_queue: str, outside: Path, gate: Path
) -> None:
    """K9: QUIT breaks the body off; that is the worker's doing and costs no attempt."""
    worker = stack.worker()
    result = tasks.gated.delay("once", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    worker.quit()
    worker.wait_for_line("Cold shutdown")
    gate.touch()
    worker.wait()
    stack.worker()
    job = stack.ends(result, sweeping=True)
    wait_until(lambda: stack.depth() == 0, "no message is left")
    assert (job.failures, job.crashes, stack.effects("once")) == (0, 0, 1)
