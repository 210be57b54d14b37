"""What code may do to jobs: reliable_jobs.jobs."""

from __future__ import annotations

import uuid

import pytest

from reliable_jobs import jobs
from reliable_jobs.models import Job
from tests.testapp import tasks

pytestmark = pytest.mark.django_db


def test_a_job_is_found_by_the_id_that_delay_returned() -> None:
    assert jobs.get(tasks.effect.delay("got").id).status == "waiting"
    with pytest.raises(Job.DoesNotExist):
        jobs.get(uuid.uuid4())


def test_jobs_are_cancelled_and_requeued_by_queryset_or_by_id() -> None:
    first, second = tasks.effect.delay("first"), tasks.effect.delay("second")
    report = jobs.cancel(Job.objects.filter(status="waiting"), actor="ada")
    assert sorted(map(str, report.done)) == sorted([first.id, second.id])
    again = jobs.requeue([first.id], actor="ada", queue="slow")
    assert [str(one) for one in again.done] == [first.id]
    assert [jobs.get(one.id).status for one in (first, second)] == ["waiting", "cancelled"]
    assert jobs.get(first.id).queue == "slow"


def test_an_id_that_is_none_is_refused_before_anything_is_written() -> None:
    result = tasks.effect.delay("stays")
    with pytest.raises(ValueError, match="badly formed"):
        jobs.cancel([result.id, "not an id"], actor="ada")
    assert jobs.get(result.id).status == "waiting"
