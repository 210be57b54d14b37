"""I7: unknown task, arguments that do not fit, undecodable body, expiry, oversize, unroutable, revoked: each ends in a
visible state with a reason. And what people do to jobs from outside is either done or said not to be."""

from __future__ import annotations

import datetime
import uuid
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.errors import JobTooLarge
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.sweep import pruner
from tests.celery_app import app
from tests.support.harness import Stack, Transaction, Worker, lines, wait_until
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.promise("I7")]

NEW_TASK = "tests.testapp.tasks.new_task"


# --- no code for it ---------------------------------------------------------------------------------------------------


def test_an_unknown_foreign_task_is_parked_and_runs_once_it_is_known(stack: Stack, idle_queue: str) -> None:
    old = stack.worker()
    task_id = str(uuid.uuid4())
    app.send_task(NEW_TASK, ("from elsewhere",), task_id=task_id)
    job = wait_until(lambda: Job.objects.filter(pk=task_id).first(), "the message has a row")
    assert (job.status, job.reason, job.task) == ("failed", "parked", NEW_TASK)
    assert "unknown task" in job.error
    assert stack.kinds(job) == ["parked"]
    wait_until(lambda: stack.depth() == 0, "the message is off the queue")
    stack.end_processes([old])
    stack.worker(TEST_NEW_CODE="1")
    lifecycle.requeue([job.pk], "default", actor="somebody")
    stack.ends(job, sweeping=True)
    assert stack.effects("from elsewhere") == 1


def test_a_job_unknown_to_an_old_worker_waits_for_a_new_one(stack: Stack, idle_queue: str) -> None:
    old = stack.worker()
    stack.script('tasks.new_task.delay("deployed")', TEST_NEW_CODE="1").wait()
    job = Job.objects.get()
    wait_until(lambda: stack.kinds(job), "the old worker hands it back")
    job.refresh_from_db()
    assert (job.status, job.reason, job.sends) == ("waiting", "parked", 0)
    stack.end_processes([old])
    stack.worker(TEST_NEW_CODE="1")
    Job.objects.update(due_at=timezone.now())  # the back-off would have it wait for some seconds
    job = stack.ends(job, sweeping=True)
    assert (stack.effects("deployed"), job.failures, job.crashes) == (1, 0, 0)


@pytest.mark.parametrize("misfit", ["unknown task", "arguments"])
def test_what_no_worker_can_run_is_parked_after_the_deploys_grace(stack: Stack, idle_queue: str, misfit: str) -> None:
    if misfit == "arguments":
        worker = stack.worker(TEST_NEW_CODE="1", DEPLOY_GRACE=0.1)
        tasks.changed.delay("in the end")
    else:
        worker = stack.worker(DEPLOY_GRACE=0.1)
        stack.script('tasks.new_task.delay("in the end")', TEST_NEW_CODE="1").wait()
    job = Job.objects.get()
    wait_until(lambda: stack.kinds(job) == ["parked"], "it is handed back")
    assert stack.job(job.pk).status == "waiting"
    Job.objects.update(due_at=timezone.now())  # the back-off would have it wait for some seconds
    job = stack.ends(job, "failed", sweeping=True)
    assert job.reason == "parked"
    assert (job.failures, job.crashes) == (0, 0)
    assert ("changed" if misfit == "arguments" else "unknown task") in job.error
    stack.end_processes([worker])
    stack.worker(**({} if misfit == "arguments" else {"TEST_NEW_CODE": "1"}))
    lifecycle.requeue([job.pk], "default", actor="somebody")
    stack.ends(job, sweeping=True)
    assert stack.effects("in the end") == 1


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"\xff{", "application/json"), (b"[", "application/json"), (b"?", "application/x-nobody-knows")],
)
def test_an_undecodable_body_is_parked_with_its_bytes(
    stack: Stack, idle_queue: str, body: bytes, content_type: str
) -> None:
    task_id = str(uuid.uuid4())
    worker = stack.worker()
    stack.publish_raw(body, content_type, {"task": tasks.effect.name, "id": task_id, "lang": "py"})
    job = wait_until(lambda: Job.objects.filter(pk=task_id).first(), "the message has a row")
    assert (job.status, job.reason, bytes(job.payload)) == ("failed", "parked", body)
    assert stack.kinds(job) == ["parked"]
    stack.ends(tasks.effect.delay("the worker lives on"))
    assert worker.alive


def test_a_message_that_is_no_task_at_all_is_parked(stack: Stack, worker: Worker) -> None:
    stack.publish_raw(b'{"hello": 1}', "application/json", {})
    job = wait_until(lambda: Job.objects.first(), "the message has a row")
    assert (job.status, job.reason) == ("failed", "parked")
    stack.ends(tasks.effect.delay("the worker lives on"))


def test_a_task_called_from_elsewhere_runs_once_for_all_deliveries(stack: Stack, idle_queue: str) -> None:
    task_id = str(uuid.uuid4())
    for _ in range(3):
        app.send_task(tasks.effect.name, ("from elsewhere",), task_id=task_id)
    worker = stack.worker(concurrency=2)
    wait_until(lambda: Job.objects.filter(pk=task_id, status="succeeded").exists(), "it has run")
    worker.wait_for_line(" ignored", 2)
    assert stack.effects("from elsewhere") == 1


# --- refused, expired, revoked ----------------------------------------------------------------------------------------


def test_an_oversized_call_is_refused_at_the_call_and_writes_nothing(stack: Stack) -> None:
    with pytest.raises(JobTooLarge, match="the largest part is argument 1"):
        tasks.effect.delay("x" * 100_000)
    assert not Job.objects.exists()


def test_an_expired_job_ends_expired_and_never_runs(stack: Stack, idle_queue: str) -> None:
    result = tasks.effect.apply_async(("too late",), expires=0.2)
    wait_until(lambda: stack.job(result).expires_at < stack.database_now(), "it has expired")
    stack.worker()
    job = stack.ends(result, "expired")
    assert stack.effects("too late") == 0
    assert stack.kinds(job) == ["expiry"]
    assert result.state == "REVOKED"


def test_a_revoked_waiting_job_is_cancelled_and_its_message_does_nothing(stack: Stack, idle_queue: str) -> None:
    result = tasks.effect.delay("revoked")
    result.revoke()
    job = stack.job(result)
    assert (job.status, job.reason) == ("cancelled", "revoked")
    stack.worker()
    wait_until(lambda: stack.depth() == 0, "the message is taken")
    stack.ends(tasks.effect.delay("next"))
    assert stack.effects("revoked") == 0
    assert result.state == "REVOKED"


def test_a_revoke_that_only_the_worker_hears_cancels_the_row(stack: Stack, idle_queue: str) -> None:
    """``app.control.revoke`` and Flower know nothing of the row."""
    stack.worker()
    job = stack.row_only(tasks.effect, "revoked")
    app.control.revoke(str(job.pk))
    wait_until(lambda: str(job.pk) in str(app.control.inspect(timeout=0.5).revoked()), "the worker has heard")
    job = stack.ends(job, "cancelled", sweeping=True)
    assert job.reason == "revoked"
    assert stack.effects("revoked") == 0


def test_a_terminated_run_is_cancelled_and_not_rescued(
    stack: Stack, idle_queue: str, outside: Path, gate: Path
) -> None:
    worker = stack.worker(LEASE=1)
    result = tasks.gated.delay("terminated", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    result.revoke(terminate=True, signal="SIGKILL")
    job = stack.ends(result, "cancelled", sweeping=True)
    assert job.reason == "revoked"
    gate.touch()
    stack.sweep()
    stack.ends(tasks.effect.delay("next"))
    assert (stack.effects("terminated"), len(lines(outside))) == (0, 1)
    assert worker.alive


def test_a_job_revoked_and_then_requeued_runs(stack: Stack, idle_queue: str) -> None:
    """A worker remembers revoked ids for hours; a person's "again" outweighs that."""
    stack.worker()
    job = stack.row_only(tasks.effect, "again")
    app.control.revoke(str(job.pk))
    wait_until(lambda: str(job.pk) in str(app.control.inspect(timeout=0.5).revoked()), "the worker has heard")
    stack.ends(job, "cancelled", sweeping=True)
    lifecycle.requeue([job.pk], "default", actor="somebody")
    stack.ends(job, sweeping=True)
    assert stack.effects("again") == 1


# --- races ------------------------------------------------------------------------------------------------------------


def old_failed_job(stack: Stack) -> Job:
    job = stack.row_only(tasks.effect, "requeued")
    long_ago = timezone.now() - datetime.timedelta(days=1000)
    Job.objects.filter(pk=job.pk).update(status="failed", finished_at=long_ago)
    JobEvent.objects.create(job_id=job.pk, kind="failure")
    return job


def test_a_requeue_that_races_a_prune_keeps_the_job_and_its_history(stack: Stack) -> None:
    job = old_failed_job(stack)
    requeue = Transaction(lambda: lifecycle.requeue([job.pk], "default", actor="somebody"))
    prune = Transaction(lambda: pruner.prune())  # would have to wait if it did not skip
    requeue.end()
    prune.end()
    assert (requeue.answer.done, prune.answer) == ([job.pk], 0)
    assert stack.job(job.pk).status == "waiting"
    assert stack.kinds(job) == ["failure", "requeue"]


def test_a_prune_that_races_a_requeue_never_deletes_a_waiting_job(stack: Stack) -> None:
    job = old_failed_job(stack)
    prune = Transaction(lambda: pruner.prune())
    report = lifecycle.requeue([job.pk], "default", actor="somebody")
    assert report.done == []
    assert job.pk in report.skipped
    prune.end(commit=False)
    assert lifecycle.requeue([job.pk], "default", actor="somebody").done == [job.pk]
    assert pruner.prune() == 0
    assert stack.job(job.pk).status == "waiting"


def test_a_cancel_of_a_running_job_waits_for_nothing_and_says_running(
    stack: Stack, idle_queue: str, outside: Path, gate: Path
) -> None:
    stack.worker()
    result = tasks.gated.delay("runs on", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    job = stack.job(result)
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '30 s'")  # the job runs, and has its lock, until the gate opens
    try:
        for report in (
            lifecycle.cancel([job.pk], "default", actor="somebody"),
            lifecycle.requeue([job.pk], "default", actor="somebody"),
        ):
            assert (report.done, report.skipped) == ([], {job.pk: "running"})
        stack.sweep()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")
    gate.touch()
    assert stack.ends(result).epoch == 1
    assert stack.effects("runs on") == 1


def test_a_cancel_that_was_there_first_wins_against_the_claim(stack: Stack, idle_queue: str) -> None:
    result = tasks.effect.delay("cancelled")
    job = stack.job(result)
    cancel = Transaction(lambda: lifecycle.cancel([job.pk], "default", actor="somebody"))
    worker = stack.worker()
    worker.wait_for_line(" ignored")
    cancel.end()
    assert stack.ends(result, "cancelled").reason == ""
    stack.publish(job)
    worker.wait_for_line(" ignored", 2)
    assert stack.effects("cancelled") == 0


@pytest.mark.promise("I2")
def test_a_cancel_undone_after_it_met_the_claim_loses_no_job(stack: Stack, idle_queue: str) -> None:
    result = tasks.effect.delay("not cancelled")
    cancel = Transaction(lambda: lifecycle.cancel([result.id], "default", actor="somebody"))
    stack.worker().wait_for_line(" ignored")
    cancel.end(commit=False)
    stack.ends(result, sweeping=True)
    assert stack.effects("not cancelled") == 1


@pytest.mark.promise("I3")
def test_a_message_of_an_earlier_content_is_dropped(stack: Stack, idle_queue: str, outside: Path) -> None:
    """After ``replace()`` a redelivered message of the first content must not run the first body again, or the second
    one before it is due."""
    worker = stack.worker()
    result = tasks.becomes_later.delay("in an hour", str(outside))
    before = stack.job(result)
    wait_until(lambda: stack.job(result).content_version == 1, "the job has become another")
    stack.publish(before, content_version=0)
    worker.wait_for_line(" ignored", 2)
    Job.objects.update(due_at=timezone.now())
    stack.publish(before, content_version=0)
    worker.wait_for_line(" ignored", 3)
    assert (len(lines(outside)), stack.effects("in an hour")) == (1, 0)
    stack.ends(result, sweeping=True)
    assert (len(lines(outside)), stack.effects("in an hour")) == (1, 1)


def test_a_message_that_comes_before_its_job_is_due_does_nothing(stack: Stack, worker: Worker) -> None:
    result = tasks.effect.apply_async(("early",), countdown=3600)
    said = worker.log.count(" ignored")
    stack.publish(stack.job(result))
    worker.wait_for_line(" ignored", said + 1)
    assert (stack.effects("early"), stack.job(result).status) == (0, "waiting")


def test_a_message_without_a_row_does_nothing_and_is_said(stack: Stack, idle_queue: str) -> None:
    job = stack.row_only(tasks.effect, "gone")
    stack.publish(job)
    Job.objects.all().delete()
    worker = stack.worker()
    worker.wait_for_line("has no row in 'default' any more")
    worker.wait_for_line(" ignored")
    assert stack.effects("gone") == 0
    assert not Job.objects.exists()
