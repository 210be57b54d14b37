"""I3: an atomic task's writes, its settlement, its result and its follow-up jobs commit together or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from django_celery_results.models import TaskResult

from reliable_jobs.models import Job
from tests.support.harness import Stack, Worker, lines, wait_until
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.promise("I3")]


@pytest.mark.parametrize("victim", ["child", "whole worker"])
def test_killed_after_the_settlement_the_effect_and_the_result_are_there(
    stack: Stack, idle_queue: str, outside: Path, gate: Path, victim: str
) -> None:
    doomed = stack.worker()
    result = tasks.settles_then_waits.delay("once", str(outside), str(gate))
    [line] = wait_until(lambda: lines(outside), "the settlement is committed")
    assert stack.job(result).status == "succeeded"
    assert TaskResult.objects.filter(task_id=result.id, status="SUCCESS").count() == 0, "the kill comes too late"
    if victim == "child":
        doomed.kill9_child(line.split()[1])
    else:
        doomed.kill9()
        assert result.state == "SUCCESS", "the row answers although the backend knows nothing"
        assert result.get(timeout=5) == "once"
        stack.worker()
    wait_until(
        lambda: TaskResult.objects.filter(task_id=result.id, status="SUCCESS").exists(),
        "the result backend is in line with the row",
    )
    assert len(lines(outside)) == 1, "the body ran again"
    assert stack.effects("once") == 1
    assert stack.job(result).status == "succeeded"
    assert TaskResult.objects.get(task_id=result.id).result == '"once"'


def test_a_body_that_fails_leaves_nothing_but_its_failure(stack: Stack, worker: Worker) -> None:
    job = stack.ends(tasks.fails.delay("half"), "failed")
    assert stack.effects("half") == 0
    assert "ValueError: no half" in job.error
    assert "raise ValueError" in job.traceback
    assert stack.kinds(job) == ["failure"]


def test_an_attempt_that_is_retried_leaves_nothing_behind(stack: Stack, worker: Worker) -> None:
    job = stack.ends(tasks.fails_first.delay("tried", 2), sweeping=True)
    assert (stack.effects("tried"), stack.effects("tried-undone")) == (1, 1)
    assert job.failures == 2


def test_a_violated_deferred_constraint_fails_the_task_function(stack: Stack, worker: Worker) -> None:
    job = stack.ends(tasks.breaks_deferred.delay("dangling"), "failed")
    assert stack.effects("dangling") == 0
    assert "IntegrityError" in job.error


def test_a_result_that_cannot_be_stored_undoes_the_body(stack: Stack, worker: Worker) -> None:
    job = stack.ends(tasks.returns_nonsense.delay("nonsense"), "failed")
    assert stack.effects("nonsense") == 0
    assert "can't be stored as JSON" in job.error


def test_a_body_that_swallows_a_database_error_is_told_what_to_do(stack: Stack, worker: Worker) -> None:
    job = stack.ends(tasks.swallows_integrity_error.delay("swallowed"), "failed")
    assert stack.effects("swallowed") == 0
    assert "savepoint" in job.error


def test_a_function_that_commits_by_hand_fails_with_advice(stack: Stack, worker: Worker) -> None:
    job = stack.ends(tasks.commits_by_hand.delay("raw"), "failed", sweeping=True)
    assert "atomic = False" in job.error


def test_jobs_that_a_failing_body_enqueued_never_were(stack: Stack, worker: Worker) -> None:
    stack.ends(tasks.enqueues.delay("follow-up", fail=True), "failed")
    assert Job.objects.count() == 1
    stack.ends(tasks.enqueues.delay("follow-up"))
    stack.all_end_but("failed")
    assert stack.effects("follow-up") == 1


@pytest.mark.promise("I2")
def test_killed_after_the_settlement_its_callbacks_run_once(
    stack: Stack, idle_queue: str, outside: Path, gate: Path
) -> None:
    doomed = stack.worker()
    tasks.settles_then_waits.apply_async(
        ("first", str(outside), str(gate)), link=[tasks.effect.si("callback"), tasks.effect.si("another")]
    )
    wait_until(lambda: lines(outside), "the settlement is committed")
    assert Job.objects.count() == 3
    doomed.kill9()
    stack.worker()
    stack.all_end(sweeping=True)
    wait_until(lambda: stack.depth() == 0, "no message is left")
    assert [stack.effects(name) for name in ("first", "callback", "another")] == [1, 1, 1]


def test_work_in_pieces_commits_each_piece_once_despite_kills(stack: Stack, idle_queue: str) -> None:
    doomed = stack.worker()
    result = tasks.snoozes.delay("piece", 4)
    wait_until(lambda: stack.sweep() and stack.effects("piece") >= 2, "two pieces are done", every=0.02)
    doomed.kill9()
    stack.worker()
    job = stack.ends(result, sweeping=True)
    assert stack.effects("piece") == 4
    assert job.failures == 0
