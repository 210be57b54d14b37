"""A signature that has an id of its own, called in two workflows: Celery runs it again, and a job's id is one job."""

from __future__ import annotations

import pytest
from celery import chain, chord

from reliable_jobs.models import Job
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.workflow.chords import body, fails, no_backend, part

jobs = inprocess.jobs


@pytest.mark.promise("I7")
@pytest.mark.parametrize("where", ["in a chain", "in a body"])
def test_the_second_workflow_fails_visibly(jobs: InProcess, where: str) -> None:
    """Its step was taken for one that had been started before: the later ones never came, and nothing said so."""
    step = fails.s()
    step.freeze()
    with no_backend():
        chain(part.si(1), step, part.s()).apply_async()
        jobs.finish()
        again = chain(part.si(2), step, part.s())
        result = (again if where == "in a chain" else chord([part.si(3)], again)).apply_async()
        jobs.finish()
        assert result.state == "FAILURE"
    told = Job.objects.filter(error__contains="belongs to a job of another workflow")
    assert told.exists(), list(Job.objects.values_list("task", "status", "error"))


def test_a_step_that_is_started_again_by_a_requeue_is_the_same(jobs: InProcess) -> None:
    from reliable_jobs import lifecycle

    with no_backend():
        result = (part.si(1) | body.s()).apply_async()
        jobs.finish()
        lifecycle.requeue([Job.objects.get(pk=result.parent.id).pk], "default", actor="ann")
        jobs.finish()
    assert set(Job.objects.values_list("status", flat=True)) == {"succeeded"}
