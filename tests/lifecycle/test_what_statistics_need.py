"""Release, start and exception class of each run are on the row, and its events say what they are about."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.errors import JobParked
from reliable_jobs.lifecycle import Claim, db_errors
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind, Reason, Status
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks

from .test_lifecycle import claim, make, now, past

pytestmark = pytest.mark.django_db
jobs = inprocess.jobs

RELEASE = {"RELEASE": "v42"}


@pytest.fixture(autouse=True)
def release() -> Any:
    with override_settings(RELIABLE_JOBS=RELEASE):
        yield


def committed(job: Job) -> Claim:
    taken = lifecycle.claim_committed(job.pk, 0, "default", worker="w", lease=10)
    assert isinstance(taken, Claim)
    return taken


# --- the row ----------------------------------------------------------------------------------------------------------


def test_a_success_keeps_start_and_release_and_forgets_the_class() -> None:
    row = make(error_class="ValueError", started_at=past(600))
    taken = claim(row)
    assert lifecycle.succeed(taken, "w", None)
    after = now(row)
    assert (after.run_started_at, after.release, after.error_class) == (taken.now, "v42", "")
    assert after.started_at < after.run_started_at


def test_a_bundle_keeps_them_too() -> None:
    claims = [claim(make(error_class="ValueError")) for _ in range(2)]
    assert lifecycle.succeed_many(claims, "w", [None, None], [None, None])
    assert {(job.run_started_at is None, job.release, job.error_class) for job in Job.objects.all()} == {
        (False, "v42", "")
    }


def test_a_committed_claim_shows_them_while_it_runs() -> None:
    row = make(started_at=past(600), run_started_at=past(600))
    taken = committed(row)
    running = now(row)
    assert running.release == "v42"
    assert running.run_started_at > running.started_at
    assert lifecycle.succeed(taken, "w", None)
    assert now(row).run_started_at == running.run_started_at


@pytest.mark.parametrize("by_token", [False, True])
def test_a_retry_and_a_failure_keep_the_class(by_token: bool) -> None:
    first = make()
    taken = committed(first) if by_token else claim(first)
    assert lifecycle.run_again(taken, "w", Reason.ERROR, delay=-1, error="x", error_class="ValueError", failure=1)
    row = now(first)
    assert (row.error_class, row.release, row.run_started_at is None) == ("ValueError", "v42", False)
    with override_settings(RELIABLE_JOBS={"RELEASE": "v43"}):
        taken = committed(first) if by_token else claim(first)
        assert lifecycle.fail(taken, "w", Reason.ERROR, "y", "", error_class="KeyError")
    row = now(first)
    assert (row.error_class, row.release, row.run_started_at is None) == ("KeyError", "v43", False)


@pytest.mark.parametrize("by_token", [False, True])
def test_a_run_whose_function_never_began_has_no_start(by_token: bool) -> None:
    rows = [make(), make(), make()]
    claims = [committed(row) if by_token else claim(row) for row in rows]
    assert lifecycle.run_again(claims[0], "w", Reason.INTERRUPTED, began=False)
    assert lifecycle.expire(claims[1], "w")
    assert lifecycle.fail(claims[2], "w", Reason.PARKED, "no code", "", kind=EventKind.PARKED)
    assert {(now(row).started_at, now(row).run_started_at) for row in rows} == {(None, None)}


def test_a_requeue_resets_them() -> None:
    row = make(Status.FAILED, run_started_at=past(), release="v41", error_class="ValueError")
    lifecycle.requeue([row.pk], "default", actor="ada")
    after = now(row)
    assert (after.run_started_at, after.release, after.error_class) == (None, "", "")


# --- events -----------------------------------------------------------------------------------------------------------


def said(job: Job) -> list[tuple[str, bool | None, str, str]]:
    events = list(JobEvent.objects.filter(job_id=job.pk).order_by("pk"))
    assert {(event.task, event.queue) for event in events} == {(job.task, job.queue)}
    return [(event.kind, event.final, event.error_class, event.release) for event in events]


def test_an_event_says_whether_the_job_or_only_a_run_has_ended() -> None:
    row = make()
    lifecycle.run_again(
        claim(row), "w", Reason.ERROR, delay=-1, error_class="ValueError", kind=EventKind.FAILURE, failure=1
    )
    lifecycle.fail(claim(row), "w", Reason.ERROR, "x", "", error_class="ValueError")
    lifecycle.requeue([row.pk], "default", actor="ada")
    lifecycle.cancel([row.pk], "default", actor="ada")
    assert said(row) == [
        ("failure", False, "ValueError", "v42"),
        ("failure", True, "ValueError", "v42"),
        ("requeue", None, "", "v42"),
        ("cancel", True, "", "v42"),
    ]


def test_a_job_that_is_handed_back_has_not_ended_until_it_is_parked() -> None:
    row = make()
    lifecycle.hand_back(row.pk, "default", worker="w", why="unknown", delay=-1)
    Job.objects.update(deadline_at=past())
    lifecycle.hand_back(row.pk, "default", worker="w", why="unknown", delay=0)
    parked = "reliable_jobs.errors.JobParked"
    assert said(row) == [("parked", None, "", "v42"), ("parked", True, parked, "v42")]
    assert now(row).error_class == parked


@pytest.mark.parametrize("seen", [False, True])
def test_a_death_is_counted_once_and_with_the_release_that_died(seen: bool) -> None:
    row = make()
    committed(row)
    if seen:
        lifecycle.record(row, "default", EventKind.CRASH, "parent", "signal 9", final=False)
    Job.objects.update(lease_at=timezone.now() - datetime.timedelta(seconds=1))
    with override_settings(RELIABLE_JOBS={"RELEASE": "of the sweeper"}):
        assert lifecycle.rescue("default", 10, after_restart=True) == 1
    crash = [("crash", False, "", "v42")] if seen else []
    assert said(row) == [*crash, ("rescue", None if seen else False, "", "v42")]


# --- by a run ---------------------------------------------------------------------------------------------------------


def test_a_class_is_named_with_its_module() -> None:
    assert db_errors.class_of(ValueError("x")) == "ValueError"
    assert db_errors.class_of(JobParked) == "reliable_jobs.errors.JobParked"
    odd = type("Odd", (Exception,), {"__module__": "m" * 300 + "\x00"})
    assert db_errors.class_of(odd) == "m" * (255 - len("\\x00.Odd")) + "\\x00.Odd"


def test_a_sensitive_task_keeps_the_class_that_its_error_hides(jobs: InProcess) -> None:
    result = tasks.login.delay("ada", password="secret")
    jobs.work()
    row = jobs.row(result)
    assert row.error_class == "ValueError"
    assert JobEvent.objects.get(job_id=row.pk).error_class == "ValueError"


def test_no_statement_is_needed_for_them(jobs: InProcess) -> None:
    result = tasks.fails.delay("x")
    with CaptureQueriesContext(connection) as asked:
        jobs.work()
    writes = [one["sql"] for one in asked if one["sql"].startswith(("INSERT", "UPDATE"))]
    ours = re.findall(r"(?:INSERT INTO|UPDATE) .(reliable_jobs_\w+)", "\n".join(writes))
    assert ours == ["reliable_jobs_job", "reliable_jobs_jobevent"]
    assert jobs.row(result).release == "v42"
