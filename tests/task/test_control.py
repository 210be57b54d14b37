"""What a body may do with its own job: retry, snooze, replace, fence; and what its exceptions mean."""

from __future__ import annotations

import datetime
import json
import uuid
from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry
from django.db import transaction
from django.utils import timezone

from reliable_jobs import DayLongTask, ReliableTask, RetriedTask, TenHourTask
from reliable_jobs.errors import RetryNotAllowed, RunTakenAway
from reliable_jobs.message.decode import arguments
from reliable_jobs.models import Job
from reliable_jobs.status import Reason
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

jobs = inprocess.jobs
UTC = datetime.timezone.utc

#: What the next body does with its task: set by each test.
ACT: dict[str, Any] = {}


@shared_task(base=ReliableTask, name="test_control.acts", bind=True, max_retries=3, default_retry_delay=50)
def acts(self: Any, *args: Any, **kwargs: Any) -> Any:
    Effect.objects.create(name="acts")
    return ACT["do"](self)


@shared_task(base=ReliableTask, name="test_control.outside", bind=True, atomic=False)
def acts_outside(self: Any, *args: Any) -> Any:
    return ACT["do"](self)


def run(jobs: InProcess, do: Any, *args: Any, task: Any = acts, **options: Any) -> Job:
    """Enqueue and run once a task that does this."""
    ACT["do"] = do
    result = task.apply_async(args, **options)
    jobs.last = [jobs.deliver(message) for message in jobs.take()]
    return jobs.row(result)


def wait(row: Job) -> float:
    """Seconds until it is due, from the moment that its run was claimed."""
    return (row.due_at - timezone.now()).total_seconds()


def do_raise(error: BaseException) -> Any:
    def do(self: Any) -> None:
        raise error

    return do


# --- retry ----------------------------------------------------------------------------------------------------------


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


# --- windows and ready-made classes ---------------------------------------------------------------------------------


@shared_task(base=ReliableTask, name="test_control.windowed", bind=True, retry_window=60)
def windowed(self: Any) -> None:
    raise self.retry(countdown=0, exc=ValueError("no"))


@shared_task(base=ReliableTask, name="test_control.windowed_and_counted", bind=True, retry_window=60, max_retries=1)
def windowed_and_counted(self: Any) -> None:
    raise self.retry(countdown=0, exc=ValueError("no"))


def test_a_window_replaces_celerys_default_of_three_retries(jobs: InProcess) -> None:
    result = windowed.delay()
    for _ in range(5):
        jobs.work()
        Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
        jobs.sweep()
    assert (jobs.row(result).status, jobs.row(result).failures) == ("waiting", 5)
    Job.objects.update(started_at=timezone.now() - datetime.timedelta(seconds=61))
    jobs.work()
    row = jobs.row(result)
    assert (row.status, row.error) == ("failed", "ValueError: no")


def test_a_count_that_was_set_holds_inside_the_window(jobs: InProcess) -> None:
    result = windowed_and_counted.delay()
    jobs.finish()
    assert jobs.row(result).failures == 2


def test_a_delay_past_the_window_is_no_retry(jobs: InProcess) -> None:
    @shared_task(base=ReliableTask, name="test_control.too_late", bind=True, retry_window=60)
    def too_late(self: Any) -> None:
        raise self.retry(countdown=61)

    job = jobs.run(too_late)
    assert job.status == "failed"
    assert "retry window of 60 s is over" in job.error


@pytest.mark.parametrize(("base", "hours"), [(TenHourTask, 10), (DayLongTask, 24)])
def test_a_ready_made_class_keeps_trying_for_its_hours(jobs: InProcess, base: Any, hours: int) -> None:
    @shared_task(base=base, name=f"test_control.keeps_trying_{hours}")
    def keeps_trying() -> None:
        raise ValueError("no")

    result = keeps_trying.delay()
    for _ in range(5):
        jobs.work()
        Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
        jobs.sweep()
    assert (jobs.row(result).status, jobs.row(result).failures) == ("waiting", 5)
    Job.objects.update(started_at=timezone.now() - datetime.timedelta(hours=hours, seconds=1))
    jobs.work()
    assert (jobs.row(result).status, jobs.row(result).error) == ("failed", "ValueError: no")


def test_the_retried_class_backs_off_and_gives_up_after_celerys_three(jobs: InProcess) -> None:
    @shared_task(base=RetriedTask, name="test_control.retried", retry_jitter=False)
    def retried() -> None:
        raise ValueError("no")

    result = retried.delay()
    delays = []
    for _ in range(3):
        jobs.work()
        delays.append(round(wait(jobs.row(result))))
        Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
        jobs.sweep()
    assert delays == [1, 2, 4]
    jobs.work()
    assert (jobs.row(result).status, jobs.row(result).failures) == ("failed", 4)


# --- autoretry ------------------------------------------------------------------------------------------------------


def auto(name: str, error: type[Exception] = ValueError, **options: Any) -> Any:
    @shared_task(base=ReliableTask, name=f"test_control.{name}", **options)
    def task() -> None:
        raise error("no")

    return task


def test_no_task_retries_unless_it_asks(jobs: InProcess) -> None:
    assert jobs.run(auto("plain")).status == "failed"


def test_autoretry_for_retries_what_it_names_and_nothing_else(jobs: InProcess) -> None:
    options = {"autoretry_for": (ValueError,), "default_retry_delay": 30}
    row = jobs.run(auto("auto_named", **options))
    assert (row.status, row.error) == ("waiting", "ValueError: no")
    assert 20 < wait(row) <= 30
    assert jobs.run(auto("auto_other", KeyError, **options)).status == "failed"


def test_dont_autoretry_for_goes_before(jobs: InProcess) -> None:
    task = auto("auto_dont", autoretry_for=(Exception,), dont_autoretry_for=(ValueError,))
    assert jobs.run(task).status == "failed"


def test_retry_kwargs_are_followed(jobs: InProcess) -> None:
    task = auto("auto_kwargs", autoretry_for=(ValueError,), retry_kwargs={"max_retries": 1, "countdown": 20})
    row = jobs.run(task)
    assert 10 < wait(row) <= 20
    jobs.finish()
    assert (jobs.row(row).status, jobs.row(row).failures) == ("failed", 2)


def test_retry_backoff_doubles_up_to_its_limit(jobs: InProcess) -> None:
    task = auto(
        "auto_backoff",
        autoretry_for=(ValueError,),
        retry_backoff=10,
        retry_backoff_max=25,
        retry_jitter=False,
        max_retries=5,
    )
    row = jobs.run(task)
    delays = []
    for _ in range(3):
        delays.append(round(wait(jobs.row(row))))
        Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
        jobs.sweep()
        jobs.work()
    assert delays == [10, 20, 25]


def test_retry_jitter_makes_the_pauses_uneven(jobs: InProcess) -> None:
    task = auto("auto_jitter", autoretry_for=(ValueError,), retry_backoff=1000, retry_backoff_max=1000)
    pauses = {round(wait(jobs.run(task))) for _ in range(6)}
    assert len(pauses) > 2
    assert max(pauses) <= 1000


def test_autoretry_leaves_ignore_reject_and_retry_alone(jobs: InProcess) -> None:
    task = auto("auto_ignore", Ignore, autoretry_for=(Exception,))
    assert jobs.run(task).status == "succeeded"


# --- where retry is not allowed -------------------------------------------------------------------------------------


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


# --- snooze and replace ---------------------------------------------------------------------------------------------


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


# --- exceptions with a meaning --------------------------------------------------------------------------------------


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


# --- fenced ---------------------------------------------------------------------------------------------------------


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
