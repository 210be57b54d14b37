"""Whatever the statistics say: a statement about one job finds it by its id, and not among all that wait or run."""

from __future__ import annotations

import pytest
from celery import shared_task

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.support.plans import explained, mislead

jobs = inprocess.jobs
pytestmark = [pytest.mark.servers, pytest.mark.promise("I10")]


@shared_task(base=ReliableTask, name="test_plans_of_runs.does", max_retries=1)
def does(what: str = "") -> None:
    if what == "fails":
        raise ValueError("no")


@pytest.mark.parametrize("send", [1, 2])
@pytest.mark.parametrize("what", ["", "fails"])
def test_a_run_finds_its_row_by_id_behind_a_new_backlog(jobs: InProcess, send: int, what: str) -> None:
    mislead()
    does.delay(what)
    job = Job.objects.get(task=does.name)
    message = jobs.message(job, send=send)
    with explained() as said:
        jobs.deliver(message)
    assert len(said) >= 2
    assert [one for one in said if one.indexes != {"reliable_jobs_job_pkey"}] == []
