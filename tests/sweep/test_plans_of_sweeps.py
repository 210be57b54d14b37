"""Whatever the statistics say: a sweep reads the rows that it takes, and a page the rows that it shows."""

from __future__ import annotations

import pytest
from celery import shared_task
from django.test import Client

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job
from reliable_jobs.status import Status
from reliable_jobs.sweep import sweeper
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.support.plans import MANY, explained, mislead
from tests.support.rows import past

jobs = inprocess.jobs
pytestmark = [pytest.mark.servers, pytest.mark.promise("I10")]


@shared_task(base=ReliableTask, name="test_plans_of_sweeps.does")
def does() -> None: ...


def test_a_sweep_reads_what_it_takes_behind_a_new_backlog(jobs: InProcess) -> None:
    mislead()
    due, overdue, dead = (does.delay().id for _ in range(3))
    Job.objects.filter(pk=due).update(sends=0)
    Job.objects.filter(pk=overdue).update(check_at=past(60))
    Job.objects.filter(pk=dead).update(status=Status.RUNNING, lease_at=past(60), crashes=1)
    with explained() as said:
        report = jobs.sweep()
    assert (report.published, report.republished, report.rescued) == (1, 1, 1)
    assert [one for one in said if one.blocks > 100] == []


def test_a_relay_reads_what_it_takes_behind_a_new_backlog(jobs: InProcess) -> None:
    mislead()
    Job.objects.filter(pk=does.delay().id).update(sends=0)
    report = sweeper.Report()
    with explained() as said:
        sweeper.publish_due(does.app, report)
    assert report.published == 1
    assert [one for one in said if one.blocks > 60] == []


def test_the_list_of_waiting_jobs_reads_those_of_its_page(jobs: InProcess, admin_client: Client) -> None:
    mislead()
    with explained() as said:
        shown = admin_client.get("/admin/reliable_jobs/job/?state=waiting")
    assert shown.context["cl"].result_count == MANY
    [rows] = [one for one in said if '"id" IN (' in one.sql]
    assert rows.indexes <= {"reliable_jobs_job_pkey", ""}, "a hundred of a small table may cost more than all of it"
