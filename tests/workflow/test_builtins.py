"""Celery's built-in tasks of workflows are reliable ones."""

from __future__ import annotations

import pytest
from celery import shared_task

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs


@shared_task(base=ReliableTask, name="test_builtins.note")
def note(*values: int) -> int:
    Effect.objects.create(name=f"note {sum(values)}")
    if values[0] < 0:
        raise ValueError("no")
    return sum(values)


@shared_task(base=ReliableTask, name="test_builtins.outside", atomic=False)
def outside(value: int) -> int:
    return value


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (lambda: note.map([1, 2]), "[1, 2]"),
        (lambda: note.starmap([(1, 2), (3, 4)]), "[3, 7]"),
        (lambda: app.tasks["celery.accumulate"].s(5, 6), "[5, 6]"),
        (lambda: app.tasks["celery.accumulate"].s(5, 6, index=1), "6"),
    ],
)
def test_it_is_a_job(jobs: InProcess, call: object, result: str) -> None:
    call().apply_async()  # type: ignore[operator]
    jobs.work()
    job = Job.objects.get()
    assert (job.status, job.result, job.relay_only) == ("succeeded", result, False), job.error


def test_chunks_are_jobs(jobs: InProcess) -> None:
    note.chunks([(1,), (2,), (3,)], 2).apply_async()
    jobs.finish()
    assert sorted(Job.objects.values_list("result", flat=True)) == ["[1, 2]", "[3]"]


@pytest.mark.promise("I3")
def test_a_map_is_atomic_where_its_task_is(jobs: InProcess) -> None:
    note.map([1, -1]).apply_async()
    jobs.work()
    assert (Job.objects.get().status, Effect.objects.count()) == ("failed", 0)
    outside.map([1, 2]).apply_async()
    (message,) = jobs.take()
    jobs.deliver(message)
    row = Job.objects.get(status="succeeded")
    assert (row.result, row.token) == ("[1, 2]", None)
