"""``retry()``: when the job runs again, with what, how often, and where it may be called."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import Retry
from django.utils import timezone

from reliable_jobs import ReliableTask
from reliable_jobs.errors import RetryNotAllowed
from reliable_jobs.message.decode import arguments
from reliable_jobs.models import Job
from reliable_jobs.status import Reason
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.task.acting import ACT, acts, acts_outside, do_raise, run, wait
from tests.testapp import tasks

jobs = inprocess.jobs

UTC = datetime.timezone.utc

# --- retry ------------------------------------------------------------------------------------------------------------


def test_retry_waits_for_the_default_delay_and_counts(jobs: InProcess) -> None:
    row = run(jobs, lambda self: self.retry())
    assert (row.status, row.failures, row.sends, row.content_version) == ("waiting", 1, 0, 0)
    assert 40 < wait(row) <= 50
    assert jobs.effects("acts") == 0, "what the body wrote is undone"


@pytest.mark.parametrize("countdown", [0, 7, 7.5])
def test_retry_takes_a_countdown(jobs: InProcess, countdown: float) -> None:
    row = run(jobs, lambda self: self.retry(countdown=countdown))
    assert countdown - 5 < wait(row) <= countdown


def test_retry_takes_an_eta(jobs: InProcess) -> None:
    eta = datetime.datetime(2031, 1, 1, tzinfo=UTC)
    assert run(jobs, lambda self: self.retry(eta=eta)).due_at == eta


def test_retry_with_other_arguments_changes_the_job_and_not_its_id(jobs: InProcess) -> None:
    row = run(jobs, lambda self: self.retry(args=(2,), kwargs={"b": 3}, countdown=0), 1, queue=jobs.queue)
    assert arguments(row) == ([2], {"b": 3})
    assert (row.content_version, Job.objects.count(), row.queue) == (1, 1, jobs.queue)
    ACT["do"] = lambda self: [self.request.args, self.request.kwargs, self.request.retries]
    jobs.finish()
    assert json.loads(jobs.row(row).result) == [[2], {"b": 3}, 1]


def test_retry_with_only_args_keeps_the_kwargs(jobs: InProcess) -> None:
    ACT["do"] = lambda self: self.retry(args=(2,), countdown=0)
    result = acts.apply_async((1,), {"kept": True})
    jobs.work()
    assert arguments(jobs.row(result)) == ([2], {"kept": True})


@pytest.mark.promise("I3")
def test_a_message_of_the_old_content_does_not_run_after_a_retry(jobs: InProcess) -> None:
    ACT["do"] = lambda self: self.retry(args=(2,), countdown=0)
    result = acts.apply_async((1,))
    (old,) = jobs.take()
    jobs.deliver(old)
    ACT["do"] = lambda self: "ran"
    jobs.deliver(old, redelivered=False)
    assert jobs.row(result).status == "waiting"


def test_retry_may_send_the_job_to_another_queue(jobs: InProcess) -> None:
    other = f"{jobs.queue}-other"
    row = run(jobs, lambda self: self.retry(queue=other, priority=5, countdown=0))
    assert (row.queue, row.priority) == (other, 5)
    jobs.sweep()
    assert [message.headers["id"] for message in jobs.take(other)] == [str(row.pk)]


def test_retry_keeps_callbacks_and_chain(jobs: InProcess) -> None:
    def first_time(self: Any) -> str:
        if not self.request.retries:
            raise self.retry(args=("new",), countdown=0)
        return "done"

    ACT["do"] = first_time
    (acts.s("old").set(link=tasks.effect.si("callback")) | tasks.effect.si("next")).apply_async()
    jobs.finish()
    assert (jobs.effects("callback"), jobs.effects("next")) == (1, 1)


@pytest.mark.parametrize("expires", [60, datetime.datetime(2031, 1, 1, tzinfo=UTC)])
def test_retry_may_set_when_the_job_expires(jobs: InProcess, expires: Any) -> None:
    row = run(jobs, lambda self: self.retry(expires=expires, countdown=0))
    assert row.status == "waiting", row.error
    left = (row.expires_at - timezone.now()).total_seconds()
    assert 50 < left <= 60 if expires == 60 else row.expires_at == expires


def test_retry_keeps_the_time_of_expiry_by_itself(jobs: InProcess) -> None:
    row = run(jobs, lambda self: self.retry(args=(2,), countdown=0), 1, expires=600)
    assert 500 < (row.expires_at - row.created_at).total_seconds() < 700


def test_retry_without_throw_goes_on_and_still_runs_again(jobs: InProcess) -> None:
    went_on: list[Retry] = []
    row = run(jobs, lambda self: went_on.append(self.retry(countdown=5, throw=False)))
    assert isinstance(went_on[0], Retry)
    assert (row.status, row.failures) == ("waiting", 1)
    assert jobs.last[0].signals == ["task_prerun", "task_retry", "task_postrun"]
    ACT["do"] = lambda self: "done"
    jobs.finish()
    assert jobs.row(row).status == "succeeded"


def test_an_error_after_retry_without_throw_is_the_retry_still(jobs: InProcess) -> None:
    def do(self: Any) -> None:
        self.retry(countdown=5, throw=False)
        raise ValueError("later")

    row = run(jobs, do)
    assert (row.status, row.failures) == ("waiting", 1)
    assert jobs.effects("acts") == 0


def test_the_error_behind_a_retry_is_recorded(jobs: InProcess) -> None:
    row = run(jobs, lambda self: self.retry(exc=ValueError("why")))
    assert (row.reason, row.error) == (Reason.ERROR, "ValueError: why")
    assert jobs.kinds(row) == ["failure"]


def test_a_retry_inside_except_records_the_error_at_hand(jobs: InProcess) -> None:
    def do(self: Any) -> None:
        try:
            raise ValueError("at hand")
        except ValueError:
            raise self.retry(countdown=0)  # noqa: B904

    assert "at hand" in run(jobs, do).error


@pytest.mark.parametrize("given", [{}, {"exc": ValueError("the last")}])
def test_without_a_retry_left_the_job_fails_with_the_given_error(jobs: InProcess, given: dict[str, Any]) -> None:
    row = run(jobs, lambda self: self.retry(countdown=0, **given))
    deliveries = jobs.finish()
    row = jobs.row(row)
    assert (row.status, row.failures) == ("failed", 4)
    assert len(deliveries) == 3, "max_retries=3 means four runs"
    assert deliveries[-1].signals == ["task_prerun", "task_failure", "task_postrun"]
    assert ("ValueError: the last" if given else "MaxRetriesExceededError") in row.error


def test_without_a_retry_left_the_traceback_has_the_error_at_hand(jobs: InProcess) -> None:
    def do(self: Any) -> None:
        try:
            raise KeyError("at hand")
        except KeyError:
            raise self.retry(countdown=0, max_retries=0)  # noqa: B904

    row = run(jobs, do)
    assert row.status == "failed"
    assert row.error.startswith("MaxRetriesExceededError")
    assert "KeyError: 'at hand'" in row.traceback


def test_max_retries_of_the_call_goes_before_the_tasks(jobs: InProcess) -> None:
    row = run(jobs, lambda self: self.retry(countdown=0, max_retries=1))
    jobs.finish()
    assert jobs.row(row).failures == 2


@shared_task(base=ReliableTask, name="test_control.unlimited", bind=True, max_retries=None)
def unlimited(self: Any) -> None:
    raise self.retry(countdown=0)


def test_max_retries_of_none_means_unlimited(jobs: InProcess) -> None:
    result = unlimited.delay()
    for _ in range(6):
        jobs.work()
        Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
        jobs.sweep()
    assert jobs.row(result).failures == 6


@pytest.mark.parametrize("countdown", ["5", float("nan"), []])
def test_a_countdown_that_is_none_fails_the_job_with_a_reason(jobs: InProcess, countdown: Any) -> None:
    row = run(jobs, lambda self: self.retry(countdown=countdown))
    assert row.status == "failed"
    assert "countdown=" in row.error


def test_arguments_that_can_not_travel_fail_the_job_with_a_reason(jobs: InProcess) -> None:
    row = run(jobs, lambda self: self.retry(args=(object(),), countdown=0))
    assert row.status == "failed"
    assert "argument 1" in row.error


def test_a_retry_of_a_direct_call_is_celerys_own(db: None) -> None:
    ACT["do"] = lambda self: self.retry(exc=ValueError("direct"))
    with pytest.raises(ValueError, match="direct"):
        acts()


def test_celerys_own_retry_exception_is_a_retry(jobs: InProcess) -> None:
    row = run(jobs, do_raise(Retry(exc=ValueError("why"), when=20)))
    assert (row.status, row.failures) == ("waiting", 1)
    assert 10 < wait(row) <= 20


def test_a_non_atomic_body_retries_too(jobs: InProcess) -> None:
    row = run(jobs, lambda self: self.retry(countdown=5, args=(2,)), 1, task=acts_outside)
    assert (row.status, row.failures, row.crashes, row.token) == ("waiting", 1, 0, None)
    assert arguments(row) == ([2], {})


# --- where retry is not allowed ---------------------------------------------------------------------------------------


class RetriesTooLate(ReliableTask):
    said: list[BaseException] = []

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        try:
            self.retry(countdown=1)
        except RetryNotAllowed as error:
            self.said.append(error)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.on_failure(ValueError(), task_id, args, kwargs, None)


@pytest.mark.parametrize("fails", [True, False])
def test_retry_after_the_run_is_refused_naming_the_attribute_to_use(jobs: InProcess, fails: bool) -> None:
    @shared_task(base=RetriesTooLate, name=f"test_control.too_late_{fails}")
    def too_late() -> None:
        if fails:
            raise ValueError("no")

    RetriesTooLate.said.clear()
    job = jobs.run(too_late)
    assert job.status == ("failed" if fails else "succeeded")
    (error,) = RetriesTooLate.said
    assert "autoretry_for" in str(error)
    assert jobs.take() == []


def test_snooze_outside_a_run_is_refused(db: None) -> None:
    ACT["do"] = lambda self: self.snooze(5)
    with pytest.raises(RetryNotAllowed, match="only inside a worker's run"):
        acts()
