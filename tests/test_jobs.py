"""What code may do to jobs: reliable_jobs.jobs."""

from __future__ import annotations

import datetime
import uuid

import pytest
from django.utils import timezone

from reliable_jobs import jobs
from reliable_jobs.models import Job, JobGroup
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


def test_purge_cancels_what_waits_and_deletes_what_has_ended() -> None:
    waiting, failed, young = tasks.effect.delay("waiting"), tasks.effect.delay("failed"), tasks.effect.delay("young")
    old = timezone.now() - datetime.timedelta(hours=2)
    Job.objects.filter(pk=waiting.id).update(created_at=old)
    Job.objects.filter(pk=failed.id).update(status="failed", finished_at=old, created_at=old)
    other, hour = tasks.fails.delay("other"), datetime.timedelta(hours=1)
    assert jobs.purge(task=tasks.effect.name, age=hour, actor="ada", dry_run=True) == 1
    assert jobs.get(waiting.id).status == "waiting"
    assert jobs.purge(task=tasks.effect.name, age=hour, actor="ada") == 1
    assert [jobs.get(one.id).status for one in (waiting, young, other)] == ["cancelled", "waiting", "waiting"]
    assert jobs.purge(age=3600, status="failed", actor="ada") == 1
    assert not Job.objects.filter(pk=failed.id).exists()
    assert jobs.purge(queue="another", actor="ada") == 0
    assert jobs.purge(age=0, actor="ada") == 2
    assert Job.objects.filter(status="cancelled").count() == 3


def test_a_purge_says_what_it_is_about() -> None:
    with pytest.raises(ValueError, match="queue, task or age"):
        jobs.purge(actor="ada")
    with pytest.raises(ValueError, match="can't be purged"):
        jobs.purge(age=0, status="running", actor="ada")


def test_parts_that_a_body_may_want_are_not_purged() -> None:
    part = tasks.effect.delay("part")
    group = JobGroup.objects.create(id=uuid.uuid4(), body="{}", state="failed")
    Job.objects.update(status="succeeded", finished_at=timezone.now(), owes=group.pk)
    assert jobs.purge(age=0, status="succeeded", actor="ada") == 0
    JobGroup.objects.update(state="done")
    assert jobs.purge(age=0, status="succeeded", actor="ada") == 1
    assert not Job.objects.filter(pk=part.id).exists()


def test_an_id_that_is_none_is_refused_before_anything_is_written() -> None:
    result = tasks.effect.delay("stays")
    with pytest.raises(ValueError, match="badly formed"):
        jobs.cancel([result.id, "not an id"], actor="ada")
    assert jobs.get(result.id).status == "waiting"
