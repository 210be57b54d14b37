"""A run of a task function: what its hooks and signals hear, what becomes of its transaction, what follows it."""

from __future__ import annotations

import json

import pytest
from celery import shared_task
from django.db import connection, transaction

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import Reason
from tests.run import run_tasks
from tests.run.run_tasks import HOOKS, hooked, raises
from tests.support import inprocess
from tests.support.harness import Stack
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

forget_hooks = run_tasks.forget_hooks
jobs = inprocess.jobs

# --- signals and hooks ------------------------------------------------------------------------------------------------


def test_a_success_fires_celerys_signals_and_hooks_once(jobs: InProcess) -> None:
    job = jobs.run(hooked)
    assert (job.status, json.loads(job.result), job.failures, job.crashes) == ("succeeded", "value", 0, 0)
    assert jobs.last[0].signals == ["task_prerun", "task_success", "task_postrun"]
    assert HOOKS == [("on_success", "value"), ("after_return", "SUCCESS")]
    assert jobs.last[0].answer == "acked"
    assert jobs.effects("hooked") == 1
    assert not JobEvent.objects.exists()


def test_a_failure_fires_signals_and_hooks_once_and_is_undone(jobs: InProcess) -> None:
    job = jobs.run(hooked, "fail")
    assert (job.status, job.reason, job.failures) == ("failed", Reason.ERROR, 1)
    assert job.error == "ValueError: no"
    assert "raise ValueError" in job.traceback
    assert jobs.last[0].signals == ["task_prerun", "task_failure", "task_postrun"]
    assert HOOKS == [("on_failure", "ValueError('no')"), ("after_return", "FAILURE")]
    assert jobs.last[0].answer == "acked"
    assert jobs.effects("hooked") == 0
    assert jobs.kinds(job) == ["failure"]


def test_a_retry_fires_task_retry_and_the_next_run_task_success(jobs: InProcess) -> None:
    job = jobs.run(hooked, "retry")
    assert (job.status, job.reason, job.failures, job.sends) == ("waiting", Reason.ERROR, 1, 0)
    assert jobs.last[0].signals == ["task_prerun", "task_retry", "task_postrun"]
    assert HOOKS == [("on_retry", "ValueError('again')")]
    assert jobs.effects("hooked") == 0
    HOOKS.clear()
    (second,) = jobs.finish()
    assert second.signals == ["task_prerun", "task_success", "task_postrun"]
    assert HOOKS == [("on_success", "value"), ("after_return", "SUCCESS")]
    assert jobs.row(job).status == "succeeded"


@pytest.mark.parametrize("what", ["ignore", "snooze"])
def test_what_ends_by_its_own_wish_keeps_its_effects_and_fires_no_hook(jobs: InProcess, what: str) -> None:
    job = jobs.run(hooked, what)
    assert jobs.last[0].signals == ["task_prerun", "task_postrun"]
    assert [name for name, _ in HOOKS if name != "after_return"] == []
    assert jobs.effects("hooked") == 1
    assert job.status == ("succeeded" if what == "ignore" else "waiting")
    assert job.failures == 0


def test_a_body_that_exits_is_a_failure_and_the_worker_lives(jobs: InProcess) -> None:
    job = jobs.run(hooked, "exit")
    assert job.status == "failed"
    assert "sys.exit(3)" in job.error
    assert jobs.last[0].signals == ["task_prerun", "task_failure", "task_postrun"]
    assert jobs.run(hooked).status == "succeeded"


@pytest.mark.parametrize("what", ["", "fail"])
@pytest.mark.promise("I3")
def test_a_duplicate_of_a_settled_job_runs_nothing_and_fires_nothing(jobs: InProcess, what: str) -> None:
    job = jobs.run(hooked, what)
    before = jobs.row(job)
    HOOKS.clear()
    for pointer in ({}, {"send": 2}):
        for redelivered in (False, True):
            duplicate = jobs.deliver(jobs.message(job, redelivered=redelivered, **pointer))
            assert duplicate.signals == ["task_prerun", "task_postrun"]
            assert duplicate.answer == "acked"
    assert [name for name, _ in HOOKS if name != "after_return"] == []
    after = jobs.row(job)
    assert (after.epoch, after.finished_at, after.result) == (before.epoch, before.finished_at, before.result)
    assert jobs.effects("hooked") == (0 if what else 1)


# --- traps of atomic bodies -------------------------------------------------------------------------------------------


def test_a_body_that_swallows_an_integrity_error_keeps_what_sqlite_kept(jobs: InProcess) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("SQLite only")
    assert jobs.run(tasks.swallows_integrity_error, "one").status in ("succeeded", "failed")


@pytest.mark.servers
def test_a_body_that_swallows_an_integrity_error_fails_with_advice(stack: Stack, idle_queue: str) -> None:
    jobs = InProcess(idle_queue)
    result = tasks.swallows_integrity_error.delay("one")
    (delivered,) = jobs.work()
    row = jobs.row(result)
    assert row.status == "failed"
    assert "savepoint" in row.error
    assert "atomic = False" in row.error
    assert stack.effects("one") == 0
    assert delivered.signals == ["task_prerun", "task_failure", "task_postrun"]


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_a_deferred_constraint_fails_the_body_and_not_the_settlement(stack: Stack, idle_queue: str) -> None:
    jobs = InProcess(idle_queue)
    result = tasks.breaks_deferred.delay("deferred")
    jobs.work()
    row = jobs.row(result)
    assert (row.status, row.reason, row.failures) == ("failed", Reason.ERROR, 1)
    assert "IntegrityError" in row.error
    assert stack.effects("deferred") == 0


@pytest.mark.servers
def test_a_body_that_commits_by_hand_is_told_so(stack: Stack, idle_queue: str) -> None:
    jobs = InProcess(idle_queue)
    result = tasks.commits_by_hand.delay("committed")
    jobs.work()
    row = jobs.row(result)
    assert row.status == "failed"
    assert "atomic = False" in row.error
    # The connection was left in a state of the body's making; the next job must not notice.
    assert jobs.run(tasks.effect, "next").status == "succeeded"


@shared_task(base=ReliableTask, name="test_execution.durable")
def durable() -> None:
    with transaction.atomic(durable=True):
        pass


def test_a_durable_block_in_an_atomic_body_is_told_what_to_do(jobs: InProcess) -> None:
    job = jobs.run(durable)
    assert job.status == "failed"
    assert "self.fenced()" in job.error


@shared_task(base=ReliableTask, name="test_execution.hook_raises")
def hook_raises() -> str:
    def broken() -> None:
        raise ValueError("after the commit")

    Effect.objects.create(name="hook_raises")
    transaction.on_commit(broken)
    return "done"


@pytest.mark.promise("I3")
@pytest.mark.parametrize("send", [1, 2])
def test_an_error_in_a_hook_after_the_commit_does_not_undo_the_settlement(jobs: InProcess, send: int) -> None:
    result = hook_raises.delay()
    jobs.take()
    delivered = jobs.deliver(jobs.message(result, send=send))
    row = jobs.row(result)
    assert (row.status, row.failures, json.loads(row.result)) == ("succeeded", 0, "done")
    assert jobs.effects("hook_raises") == 1
    assert delivered.signals == ["task_prerun", "task_success", "task_postrun"]


# --- follow-ups -------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I3")
def test_a_job_enqueued_in_a_run_comes_with_its_settlement_or_not_at_all(jobs: InProcess) -> None:
    jobs.run(tasks.enqueues, "good")
    jobs.run(tasks.enqueues, "bad", fail=True)
    jobs.finish()
    assert (jobs.effects("good"), jobs.effects("bad")) == (1, 0)
    assert Job.objects.filter(task=tasks.effect.name).count() == 1


def test_the_parts_of_a_chain_follow_one_another_with_their_family(jobs: InProcess) -> None:
    result = (tasks.add.s(1, 2) | tasks.add.s(10) | tasks.add.s(100)).apply_async()
    jobs.finish()
    assert result.get(timeout=1) == 113
    first, second, third = Job.objects.order_by("created_at")
    assert {row.root_id for row in (first, second, third)} == {first.pk}
    assert (second.parent_id, third.parent_id) == (first.pk, second.pk)


def test_callbacks_run_and_an_error_stops_the_chain(jobs: InProcess) -> None:
    (tasks.add.s(1, 2).set(link=tasks.effect.si("callback")) | tasks.effect.si("next")).apply_async()
    (raises.si("no") | tasks.effect.si("never")).apply_async()
    jobs.finish()
    assert (jobs.effects("callback"), jobs.effects("next"), jobs.effects("never")) == (1, 1, 0)


def test_a_copy_of_a_chains_first_part_does_not_start_the_second_again(jobs: InProcess) -> None:
    (tasks.effect.si("first") | tasks.effect.si("second")).apply_async()
    (message,) = jobs.take()
    for _ in range(3):
        jobs.deliver(message)
    jobs.finish()
    assert (jobs.effects("first"), jobs.effects("second"), Job.objects.count()) == (1, 1, 2)
