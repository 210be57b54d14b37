"""What a task function may do with its own job: snooze, replace, exceptions with a meaning, fenced transactions."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject
from django.db import transaction

from reliable_jobs import ReliableTask
from reliable_jobs.errors import RunTakenAway
from reliable_jobs.message.decode import arguments
from reliable_jobs.models import Job
from reliable_jobs.status import Reason
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.task.acting import ACT, acts_outside, do_raise, run, wait
from tests.testapp import tasks
from tests.testapp.models import Effect

jobs = inprocess.jobs

# --- snooze and replace -----------------------------------------------------------------------------------------------


def test_snooze_keeps_what_was_written_and_costs_no_attempt(jobs: InProcess) -> None:
    row = run(jobs, lambda self: (_ for _ in ()).throw(self.snooze(30)))
    assert (row.status, row.reason, row.failures) == ("waiting", Reason.ASKED, 0)
    assert 20 < wait(row) <= 30
    assert jobs.effects("acts") == 1
    assert jobs.kinds(row) == []


def test_snooze_does_not_count_against_max_retries(jobs: InProcess) -> None:
    result = tasks.snoozes.delay("piece", 6)
    jobs.finish()
    row = jobs.row(result)
    assert (row.status, row.failures, jobs.effects("piece")) == ("succeeded", 0, 6)


def test_a_snoozed_job_is_not_aged_by_snoozing(jobs: InProcess) -> None:
    row = run(jobs, lambda self: (_ for _ in ()).throw(self.snooze(0)))
    jobs.sweep()
    ACT["do"] = lambda self: self.request.retries
    jobs.work()
    assert json.loads(jobs.row(row).result) == 0


def test_replace_keeps_the_job_and_what_was_written(jobs: InProcess) -> None:
    result = tasks.becomes.delay("replaced")
    jobs.finish()
    row = jobs.row(result)
    assert (row.task, row.status, row.content_version, Job.objects.count()) == (tasks.effect.name, "succeeded", 1, 1)
    assert (jobs.effects("replaced-before"), jobs.effects("replaced")) == (1, 1)


def test_replace_hands_the_chain_on(jobs: InProcess) -> None:
    (tasks.becomes.si("replaced") | tasks.effect.si("next") | tasks.effect.si("last")).apply_async()
    jobs.finish()
    assert [jobs.effects(name) for name in ("replaced", "next", "last")] == [1, 1, 1]


def test_replace_with_a_countdown_waits(jobs: InProcess) -> None:
    row = run(jobs, lambda self: self.replace(tasks.effect.si("later").set(countdown=60)))
    assert (row.status, row.task) == ("waiting", tasks.effect.name)
    assert 50 < wait(row) <= 60


# --- exceptions with a meaning ----------------------------------------------------------------------------------------


def test_ignore_ends_the_job_and_keeps_its_effects(jobs: InProcess) -> None:
    row = run(jobs, do_raise(Ignore()))
    assert (row.status, row.reason, jobs.effects("acts")) == ("succeeded", Reason.IGNORED, 1)


def test_reject_fails_the_job_and_undoes_its_effects(jobs: InProcess) -> None:
    row = run(jobs, do_raise(Reject("not for me", requeue=False)))
    assert (row.status, row.reason, jobs.effects("acts")) == ("failed", Reason.REJECTED, 0)
    assert "not for me" in row.error
    assert jobs.kinds(row) == ["failure"]


def test_reject_with_requeue_runs_again_at_no_cost(jobs: InProcess) -> None:
    row = run(jobs, do_raise(Reject("busy", requeue=True)))
    assert (row.status, row.reason, row.failures) == ("waiting", Reason.ASKED, 0)
    assert jobs.effects("acts") == 0
    ACT["do"] = lambda self: "done"
    jobs.finish()
    assert jobs.row(row).status == "succeeded"


@pytest.mark.parametrize(
    "error", [MemoryError("too much"), SystemExit(1), SystemExit("text"), SystemExit(None)], ids=repr
)
def test_what_would_end_the_process_is_a_failure(jobs: InProcess, error: BaseException) -> None:
    row = run(jobs, do_raise(error))
    assert (row.status, row.reason, row.failures) == ("failed", Reason.ERROR, 1)
    assert ("MemoryError" if isinstance(error, MemoryError) else "sys.exit") in row.error


def test_max_retries_exceeded_raised_by_the_body_is_its_failure(jobs: InProcess) -> None:
    assert run(jobs, do_raise(MaxRetriesExceededError("mine"))).status == "failed"


def test_a_retry_hides_sensitive_arguments(jobs: InProcess) -> None:
    @shared_task(base=ReliableTask, name="test_control.secret", bind=True, sensitive=("password",))
    def secret(self: Any, password: str) -> None:
        raise self.retry(args=(password + "2",), exc=ValueError(f"wrong: {password}"), countdown=0)

    row = jobs.run(secret, "hunter")
    assert "hunter" not in row.error + row.traceback + row.envelope
    assert arguments(row) == (["hunter2"], {})


# --- fenced -----------------------------------------------------------------------------------------------------------


def test_a_fenced_block_commits_while_the_run_owns_its_job(jobs: InProcess) -> None:
    def do(self: Any) -> None:
        with self.fenced():
            Effect.objects.create(name="fenced")

    assert run(jobs, do, task=acts_outside).status == "succeeded"
    assert jobs.effects("fenced") == 1


@pytest.mark.promise("I4")
def test_a_fenced_block_of_a_run_that_was_taken_away_commits_nothing(jobs: InProcess) -> None:
    seen: list[BaseException] = []

    def do(self: Any) -> None:
        Job.objects.update(status="waiting", token=None, lease_at=None, sends=0)  # what a rescue does
        try:
            with self.fenced():
                Effect.objects.create(name="fenced")
        except RunTakenAway as error:
            seen.append(error)
            raise

    row = run(jobs, do, task=acts_outside)
    assert len(seen) == 1
    assert jobs.effects("fenced") == 0
    assert (row.status, row.error) == ("waiting", "")
    assert jobs.last[0].signals == ["task_prerun", "task_postrun"]


@pytest.mark.promise("I4")
def test_the_end_of_a_run_that_was_taken_away_is_not_recorded(jobs: InProcess) -> None:
    another = uuid.uuid4()

    def do(self: Any) -> str:
        Job.objects.update(token=another)
        return "late"

    row = run(jobs, do, task=acts_outside)
    assert (row.status, row.token, row.result) == ("running", another, None)


def test_fenced_in_a_direct_call_is_a_plain_transaction(transactional_db: None) -> None:
    def do(self: Any) -> bool:
        with self.fenced():
            return transaction.get_connection().in_atomic_block

    ACT["do"] = do
    assert acts_outside() is True


def test_fenced_in_an_atomic_body_is_a_savepoint(jobs: InProcess) -> None:
    def do(self: Any) -> None:
        with self.fenced():
            Effect.objects.create(name="fenced")

    assert run(jobs, do).status == "succeeded"
    assert jobs.effects("fenced") == 1


def test_the_idempotency_key_is_the_same_in_every_run(jobs: InProcess) -> None:
    seen: list[str] = []

    def do(self: Any) -> None:
        seen.append(self.idempotency_key)
        if len(seen) < 3:
            raise self.retry(countdown=0)

    row = run(jobs, do)
    jobs.finish()
    assert seen == [str(row.pk)] * 3
