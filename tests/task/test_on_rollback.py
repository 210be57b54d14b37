"""``self.on_rollback()``: what is written although the run's own writes are undone."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import pytest
from django.db import connection

from reliable_jobs import ReliableTask
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Child, Effect

jobs = inprocess.jobs


def task(function: Any, **options: Any) -> Any:
    # Not a shared one, which would be every app's from then on.
    name = f"on_rollback.{uuid.uuid4().hex[:8]}"
    return app.task(base=ReliableTask, bind=True, name=name, shared=False, lazy=False, **options)(function)


def run(jobs: InProcess, made: Any, *args: Any) -> Any:
    result = made.delay(*args)
    jobs.deliver(*jobs.take())
    return jobs.row(result)


@pytest.mark.parametrize("atomic", [True, False])
def test_e2_a_failure_that_is_recorded_survives_the_rollback(jobs: InProcess, atomic: bool) -> None:
    def parse(self: Any) -> None:
        Effect.objects.create(name="processing")
        try:
            raise KeyError("no such column")
        except KeyError as error:
            Effect.objects.create(name="recorded by itself")
            self.on_rollback(Effect.objects.create, name="recorded", value=str(error))
            raise

    assert run(jobs, task(parse, atomic=atomic)).status == "failed"
    assert jobs.effects("recorded") == 1
    assert jobs.effects("recorded by itself") == jobs.effects("processing") == (0 if atomic else 1)


def test_e2_each_attempt_that_fails_is_recorded(jobs: InProcess) -> None:
    def parse(self: Any) -> None:
        self.on_rollback(Effect.objects.create, name=f"attempt {self.request.retries}")
        if self.request.retries < 1:
            raise self.retry(countdown=0)

    job = run(jobs, task(parse))
    assert (job.status, jobs.effects("attempt 0")) == ("waiting", 1)
    jobs.sweep()
    jobs.deliver(*jobs.take())
    assert (jobs.row(job).status, jobs.effects("attempt 1")) == ("succeeded", 0)


def test_e2_nothing_is_called_when_the_writes_stay(jobs: InProcess) -> None:
    def snoozes(self: Any) -> None:
        self.on_rollback(Effect.objects.create, name="called")
        raise self.snooze(60)

    assert run(jobs, task(snoozes)).status == "waiting"
    assert jobs.effects("called") == 0


def test_e2_a_call_that_raises_is_undone_alone(jobs: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    def half() -> None:
        Effect.objects.create(name="half")
        Child.objects.get(pk=-1)

    def parse(self: Any) -> None:
        self.on_rollback(half)
        self.on_rollback(Effect.objects.create, name="other")
        raise KeyError("why it failed")

    with caplog.at_level(logging.ERROR, "reliable_jobs.run"):
        job = run(jobs, task(parse))
    assert job.status == "failed"
    assert "why it failed" in job.error
    assert (jobs.effects("half"), jobs.effects("other")) == (0, 1)
    assert "a call given to on_rollback() raised" in caplog.text


def test_e2_a_constraint_that_fails_at_the_end_is_a_failure_too(jobs: InProcess) -> None:
    def orphan(self: Any) -> None:
        self.on_rollback(Effect.objects.create, name="recorded")
        Child.objects.create(parent_id=12345)

    assert run(jobs, task(orphan)).status == "failed"
    assert jobs.effects("recorded") == 1
    assert not connection.in_atomic_block


def test_outside_a_run_nothing_is_called(jobs: InProcess) -> None:
    def plain(self: Any) -> str:
        self.on_rollback(Effect.objects.create, name="called")
        return "done"

    assert task(plain)() == "done"
    assert jobs.effects("called") == 0
