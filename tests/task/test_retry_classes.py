"""Retries that a task class asks for: windows, ready-made classes, Celery's ``autoretry_for``."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import Ignore
from django.utils import timezone

from reliable_jobs import DayLongTask, ReliableTask, RetriedTask, TenHourTask
from reliable_jobs.models import Job
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.task.acting import wait, was_delayed

jobs = inprocess.jobs

# --- windows and ready-made classes -----------------------------------------------------------------------------------


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
    for seconds in (1, 2, 4):
        started = timezone.now()
        jobs.work()
        assert was_delayed(jobs.row(result), started, seconds)
        Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
        jobs.sweep()
    jobs.work()
    assert (jobs.row(result).status, jobs.row(result).failures) == ("failed", 4)


# --- autoretry --------------------------------------------------------------------------------------------------------


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
    result = task.delay()
    for seconds in (10, 20, 25):
        started = timezone.now()
        jobs.work()
        assert was_delayed(jobs.row(result), started, seconds)
        Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
        jobs.sweep()


def test_retry_jitter_makes_the_pauses_uneven(jobs: InProcess) -> None:
    task = auto("auto_jitter", autoretry_for=(ValueError,), retry_backoff=1000, retry_backoff_max=1000)
    pauses = {round(wait(jobs.run(task))) for _ in range(6)}
    assert len(pauses) > 2
    assert max(pauses) <= 1000


def test_autoretry_leaves_ignore_reject_and_retry_alone(jobs: InProcess) -> None:
    task = auto("auto_ignore", Ignore, autoretry_for=(Exception,))
    assert jobs.run(task).status == "succeeded"
