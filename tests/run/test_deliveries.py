"""Deliveries that lead to no run, or to one with a committed claim."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import shared_task
from django.test import override_settings
from django.utils import timezone
from django_celery_results.models import TaskResult

from reliable_jobs import ReliableTask
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import Reason
from tests.run import run_tasks
from tests.run.run_tasks import HOOKS, again, hooked, looks
from tests.support import inprocess
from tests.support.inprocess import InProcess

forget_hooks = run_tasks.forget_hooks
jobs = inprocess.jobs


@shared_task(base=ReliableTask, name="test_execution.wants", typing=True)
def wants(one: int, two: int) -> int:
    return one + two


# --- deliveries that get no claim -------------------------------------------------------------------------------------


def test_a_message_that_comes_before_its_time_runs_nothing(jobs: InProcess) -> None:
    result = hooked.apply_async((), countdown=60)
    assert again(jobs, result).answer == "acked"
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("waiting", 0)


@pytest.mark.parametrize("send", [1, 2])
def test_a_message_of_an_earlier_content_runs_nothing(jobs: InProcess, send: int) -> None:
    result = hooked.apply_async((), countdown=0)
    jobs.take()
    old = jobs.message(result, send=send)
    Job.objects.update(content_version=1)
    jobs.deliver(old)
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("waiting", 0)
    assert again(jobs, result, send=send).answer == "acked"
    assert jobs.row(result).status == "succeeded"


def test_a_message_that_names_a_database_which_this_worker_lacks_says_so(
    jobs: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    hooked.delay()
    (message,) = jobs.take()
    Job.objects.all().delete()
    message.headers[HEADER]["using"] = "archive"
    assert jobs.deliver(message).answer == "acked"
    assert "names the database 'archive', which this worker's DATABASES lack" in caplog.text


def test_a_message_whose_row_is_gone_is_dropped_with_a_warning(
    jobs: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    result = hooked.delay()
    (message,) = jobs.take()
    Job.objects.all().delete()
    assert jobs.deliver(message).answer == "acked"
    assert f"Job {result.id} has no row in 'default' any more" in caplog.text
    assert jobs.effects("hooked") == 0
    assert not Job.objects.exists()


def test_a_running_job_is_not_run_a_second_time(jobs: InProcess) -> None:
    result = hooked.delay()
    (message,) = jobs.take()
    Job.objects.update(
        status="running", token=uuid.uuid4(), lease_at=timezone.now() + datetime.timedelta(seconds=60), crashes=1
    )
    jobs.deliver(message)
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("running", 0)


def test_a_duplicate_brings_the_result_backend_in_line(jobs: InProcess) -> None:
    result = hooked.delay()
    jobs.work()
    TaskResult.objects.all().delete()  # as if the worker had died between its commit and the store
    again(jobs, result)
    stored = TaskResult.objects.get(task_id=result.id)
    assert (stored.status, json.loads(stored.result)) == ("SUCCESS", "value")


# --- a committed claim ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pointer", [{"send": 2}, {"send": 1, "redelivered": True}])
def test_a_careful_run_counts_itself_and_gives_its_crash_back(jobs: InProcess, pointer: dict[str, Any]) -> None:
    redelivered = pointer.pop("redelivered", False)
    result = looks.delay()
    jobs.take()
    jobs.deliver(jobs.message(result, redelivered=redelivered, **pointer))
    row = jobs.row(result)
    assert (row.status, row.crashes, row.token, row.lease_at) == ("succeeded", 0, None, None)
    assert row.epoch == 2


def test_a_job_that_crashed_before_takes_the_careful_path_by_itself(jobs: InProcess) -> None:
    result = looks.delay()
    Job.objects.update(crashes=1)
    jobs.work()
    row = jobs.row(result)
    assert (row.status, row.crashes, row.epoch) == ("succeeded", 1, 2)


@pytest.mark.promise("I6")
def test_a_job_that_crashed_too_often_is_failed_once_without_a_run(jobs: InProcess) -> None:
    result = hooked.delay()
    Job.objects.update(crashes=3)
    with override_settings(RELIABLE_JOBS={"MAX_CRASHES": 3}):
        (delivered,) = jobs.work()
    row = jobs.row(result)
    assert (row.status, row.reason) == ("failed", Reason.CRASH)
    assert "3 starts never reported" in row.error
    assert delivered.signals == ["task_prerun", "task_failure", "task_postrun"]
    assert [name for name, _ in HOOKS] == ["on_failure", "after_return"]
    assert jobs.effects("hooked") == 0
    assert jobs.kinds(row) == ["crash"]


def test_a_condemned_job_says_what_its_worker_saw_last(jobs: InProcess) -> None:
    result = hooked.delay()
    Job.objects.update(crashes=3)
    JobEvent.objects.create(job_id=result.id, kind="time limit", detail="hard time limit of 5 s exceeded")
    jobs.work()
    row = jobs.row(result)
    assert (row.reason, "hard time limit of 5 s exceeded" in row.error) == (Reason.TIME_LIMIT, True)


def test_a_requeue_forgives_the_crashes(jobs: InProcess) -> None:
    from reliable_jobs import lifecycle

    result = hooked.delay()
    Job.objects.update(crashes=3)
    jobs.work()
    lifecycle.requeue([uuid.UUID(result.id)], "default", actor="ann")
    jobs.finish()
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("succeeded", 1)


# --- expiry -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I7")
@pytest.mark.parametrize("send", [1, 2])
def test_an_expired_job_ends_so_without_a_run_and_is_heard_of(jobs: InProcess, send: int) -> None:
    result = hooked.apply_async((), expires=60)
    jobs.take()
    message = jobs.message(result, send=send)
    Job.objects.update(expires_at=timezone.now() - datetime.timedelta(seconds=1))
    delivered = jobs.deliver(message)
    row = jobs.row(result)
    assert (row.status, jobs.effects("hooked"), jobs.kinds(row)) == ("expired", 0, ["expiry"])
    assert "expired at" in row.error
    assert delivered.signals == ["task_prerun", "task_failure", "task_postrun"]
    assert result.state == "REVOKED"


def test_a_job_that_has_not_expired_runs(jobs: InProcess) -> None:
    result = hooked.apply_async((), expires=60)
    jobs.work()
    assert jobs.row(result).status == "succeeded"


# --- code that does not fit -------------------------------------------------------------------------------------------


@pytest.fixture
def misfit(jobs: InProcess) -> Iterator[Any]:
    """A job that was enqueued by newer code, with an argument too many."""
    result = wants.delay(1, 2)
    jobs.take()
    Job.objects.update(payload=b'[[1, 2, 3], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]')
    return result


@pytest.mark.promise("I7")
def test_arguments_that_do_not_fit_hand_the_job_back_and_then_park_it(jobs: InProcess, misfit: Any) -> None:
    delivered = again(jobs, misfit)
    row = jobs.row(misfit)
    assert (row.status, row.reason, row.failures, row.sends) == ("waiting", Reason.PARKED, 0, 0)
    assert "can't take the job's arguments" in row.error
    assert row.due_at > timezone.now()
    assert row.started_at is None
    assert delivered.signals == ["task_prerun", "task_postrun"]
    assert jobs.kinds(row) == ["parked"]

    Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
    again(jobs, misfit)
    assert jobs.row(misfit).status == "waiting"
    assert jobs.kinds(row) == ["parked"], "handing back again is no news"

    long_ago = timezone.now() - datetime.timedelta(seconds=1)
    Job.objects.update(due_at=long_ago, deadline_at=long_ago)
    delivered = again(jobs, misfit)
    row = jobs.row(misfit)
    assert (row.status, row.reason) == ("failed", Reason.PARKED)
    assert delivered.signals == ["task_prerun", "task_failure", "task_postrun"]


def test_a_job_that_was_handed_back_runs_once_its_code_is_there(jobs: InProcess, misfit: Any) -> None:
    again(jobs, misfit)
    Job.objects.update(
        payload=b'[[1, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
        due_at=timezone.now() - datetime.timedelta(seconds=1),
    )
    again(jobs, misfit)
    row = jobs.row(misfit)
    assert (row.status, row.error, row.deadline_at) == ("succeeded", "", None)


@pytest.mark.parametrize("send", [1, 2])
def test_a_misfit_on_the_careful_path_is_no_crash(jobs: InProcess, misfit: Any, send: int) -> None:
    again(jobs, misfit, send=send)
    assert (jobs.row(misfit).status, jobs.row(misfit).crashes) == ("waiting", 0)
