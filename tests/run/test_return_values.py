"""What a task function returns is the job's result."""

from __future__ import annotations

import os
import uuid
from typing import Any

import pytest
from celery import shared_task
from django.db import connection

from reliable_jobs import ReliableTask
from tests.run import run_tasks
from tests.run.run_tasks import HOOKS, Hooked, hooked, looks, raises
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

forget_hooks = run_tasks.forget_hooks
jobs = inprocess.jobs


@shared_task(base=Hooked, name="test_execution.outside", bind=True, atomic=False)
def outside_transaction(self: Any, what: str = "") -> bool:
    Effect.objects.create(name="outside")
    if what == "fail":
        raise ValueError("no")
    return connection.in_atomic_block


@shared_task(base=ReliableTask, name="test_execution.returns")
def returns(what: str) -> Any:
    Effect.objects.create(name="returned")
    return {"object": object(), "none": None, "nul": "a\u0000", "decimal": uuid.UUID(int=1), "big": "x" * 200_000}[what]


@shared_task(base=ReliableTask, name="test_execution.ignores_result", ignore_result=True)
def ignores_result() -> Any:
    return object()


def test_a_result_that_cannot_be_stored_fails_the_job(jobs: InProcess) -> None:
    job = jobs.run(returns, "object")
    assert job.status == "failed"
    assert "can't be stored as JSON" in job.error
    assert "ignore_result" in job.error
    assert jobs.effects("returned") == 0


@pytest.mark.parametrize("what", ["nul", "decimal", "big"])
def test_a_result_of_plain_data_is_kept(jobs: InProcess, what: str) -> None:
    result = returns.delay(what)
    jobs.work()
    assert jobs.row(result).status == "succeeded", jobs.row(result).error
    assert result.get(timeout=1) == {"nul": "a\u0000", "decimal": uuid.UUID(int=1), "big": "x" * 200_000}[what]


def test_nothing_returned_is_nothing_stored(jobs: InProcess) -> None:
    assert jobs.run(returns, "none").result is None


def test_an_ignored_result_is_not_stored_nor_looked_at(jobs: InProcess) -> None:
    job = jobs.run(ignores_result)
    assert (job.status, job.result) == ("succeeded", None)


@pytest.mark.parametrize("ignored", [True, False])
def test_ignore_result_of_the_call_outweighs_the_tasks(jobs: InProcess, ignored: bool) -> None:
    result = hooked.apply_async((), ignore_result=ignored)
    jobs.work()
    assert (jobs.row(result).result is None) == ignored


def test_the_call_may_ask_for_the_result_of_a_task_that_ignores_its_own(jobs: InProcess) -> None:
    result = looks.apply_async((), ignore_result=False)
    jobs.work()
    assert jobs.row(result).result is not None


def test_a_nul_in_an_error_is_written(jobs: InProcess) -> None:
    job = jobs.run(raises, "a\u0000b")
    assert job.status == "failed"
    assert "a\\x00b" in job.error


def test_a_megabyte_of_error_is_cut_in_the_middle(jobs: InProcess) -> None:
    job = jobs.run(raises, "start...end", 10**5)
    assert len(job.error) < 20_000
    assert job.error.startswith("ValueError: start")
    assert job.error.endswith("end")
    assert "characters left out" in job.error


def test_a_body_sees_its_job(jobs: InProcess) -> None:
    result = looks.delay()
    jobs.work()
    assert result.get(timeout=1) == {
        "id": result.id,
        "retries": 0,
        "key": result.id,
        "redelivered": False,
        "eager": False,
        "atomic": True,
    }


def test_a_non_atomic_body_has_no_transaction_around_it(jobs: InProcess) -> None:
    result = outside_transaction.delay()
    jobs.work()
    row = jobs.row(result)
    assert (row.status, row.token, row.lease_at, row.deadline_at, row.crashes) == ("succeeded", None, None, None, 0)
    assert result.get(timeout=1) is False


def test_a_non_atomic_bodys_effects_stay_though_it_fails(jobs: InProcess) -> None:
    job = jobs.run(outside_transaction, "fail")
    assert (job.status, job.crashes) == ("failed", 0)
    assert jobs.effects("outside") == 1
    assert [name for name, _ in HOOKS] == ["on_failure", "after_return"]


def test_times_and_worker_are_recorded(jobs: InProcess) -> None:
    row = jobs.run(hooked)
    assert row.created_at <= row.started_at <= row.finished_at
    assert f" pid {os.getpid()} #" in row.worker
