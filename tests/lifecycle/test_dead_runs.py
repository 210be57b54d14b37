"""Leases, and runs whose leases are over."""

from __future__ import annotations

import uuid

import pytest
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import Reason, Status
from tests.lifecycle.made import claim, make
from tests.support.rows import future, now, past

pytestmark = pytest.mark.promise("I4")


@pytest.mark.django_db(transaction=True)
def test_a_lease_is_extended_up_to_its_deadline() -> None:
    job = make(Status.RUNNING, lease_at=future(1), deadline_at=future(20))
    mine = claim(job)
    assert lifecycle.extend_lease(mine, 10)
    assert 5 < (now(job).lease_at - timezone.now()).total_seconds() <= 10
    assert lifecycle.extend_lease(mine, 1000)
    assert now(job).lease_at == now(job).deadline_at


@pytest.mark.django_db(transaction=True)
def test_a_lease_that_was_lost_is_not_extended() -> None:
    job = make(Status.RUNNING, lease_at=future(1), deadline_at=future(20))
    mine = claim(job)
    Job.objects.update(token=uuid.uuid4())
    before = now(job).lease_at
    assert not lifecycle.extend_lease(mine, 10)
    assert now(job).lease_at == before


@pytest.mark.django_db
def test_rescue_takes_only_runs_whose_lease_is_over() -> None:
    live, dead = make(Status.RUNNING), make(Status.RUNNING, lease_at=past(), crashes=2)
    assert lifecycle.rescue("default", 10, actor="the sweeper") == 1
    assert now(live).status == Status.RUNNING
    after = now(dead)
    assert (after.status, after.sends, after.token, after.lease_at, after.reason) == (
        Status.WAITING,
        0,
        None,
        None,
        Reason.CRASH,
    )
    assert after.crashes == 2, "its start never reported"
    assert after.due_at > timezone.now(), "a suspect waits a little"
    event = JobEvent.objects.get()
    assert (event.kind, event.actor, event.job_id) == ("rescue", "the sweeper", dead.pk)


@pytest.mark.django_db
def test_a_first_crash_is_due_again_at_once() -> None:
    dead = make(Status.RUNNING, lease_at=past(), crashes=1)
    lifecycle.rescue("default", 10)
    assert now(dead).due_at <= timezone.now()


@pytest.mark.django_db
def test_rescue_takes_no_more_than_it_may() -> None:
    for _ in range(3):
        make(Status.RUNNING, lease_at=past())
    assert lifecycle.rescue("default", 2) == 2
