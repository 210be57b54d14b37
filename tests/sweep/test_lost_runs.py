"""A sweep takes jobs back from dead runs, on every database that holds jobs."""

from __future__ import annotations

import uuid

import pytest
from django.db import transaction
from django.test import override_settings

from reliable_jobs import databases
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job
from reliable_jobs.sweep import sweeper
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import Stack, Transaction
from tests.support.inprocess import InProcess
from tests.support.rows import future, now, past
from tests.support.threads import Aside
from tests.sweep.swept import relayed
from tests.testapp import tasks

jobs = inprocess.jobs
rows = inprocess.rows
second_database = inprocess.second_database

# --- dead runs --------------------------------------------------------------------------------------------------------


def test_a_dead_run_is_rescued_and_published(jobs: InProcess) -> None:
    (job,) = relayed(status="running", token=uuid.uuid4(), lease_at=past(), crashes=1)
    assert jobs.sweep().rescued == 1
    jobs.sweep()
    jobs.work()
    assert (now(job).status, now(job).crashes) == ("succeeded", 1)
    assert jobs.kinds(job) == ["rescue"]


def test_a_live_run_is_left(rows: InProcess) -> None:
    relayed(status="running", token=uuid.uuid4(), lease_at=future())
    assert rows.sweep().idle


@pytest.mark.servers
def test_rows_that_another_sweeper_or_a_run_holds_are_skipped(stack: Stack, idle_queue: str) -> None:
    with override_settings(RELIABLE_JOBS={**stack.settings, "DISPATCH": "relay"}):
        held, free = (stack.job(tasks.effect.delay(name)) for name in ("held", "free"))
        lost = stack.job(tasks.effect.delay("lost"))
    Job.objects.filter(pk=lost.pk).update(status="running", token=uuid.uuid4(), lease_at=past())
    other = Transaction(lambda: list(Job.objects.filter(pk__in=[held.pk, lost.pk]).lock()))
    report = sweeper.sweep(app)
    assert (report.published, report.rescued) == (1, 0)
    assert now(free).sends == 1
    other.end()
    report = sweeper.sweep(app)
    assert (report.published, report.rescued) == (1, 1)


@pytest.mark.servers
@pytest.mark.promise("I8")
def test_sweepers_side_by_side_send_each_row_once(stack: Stack, idle_queue: str) -> None:
    with override_settings(RELIABLE_JOBS={**stack.settings, "DISPATCH": "relay", "PUBLISH_WINDOW": 7, "GRACE": 600}):
        with transaction.atomic():
            for n in range(60):
                tasks.effect.delay(str(n))

        for thread in [Aside(lambda: sweeper.sweep(app)) for _ in range(4)]:
            thread.value()
    ids = [message.headers["id"] for message in stack.take_messages()]
    assert len(ids) == len(set(ids)) == 60


@pytest.mark.servers
@pytest.mark.promise("I7")
def test_a_message_without_an_exchange_does_not_hold_up_the_others(stack: Stack, idle_queue: str) -> None:
    good, bad = stack.row_only(tasks.effect, "good"), stack.row_only(tasks.effect, "bad")
    envelope = bad.envelope.replace('"exchange": ""', '"exchange": "no-such-exchange"')
    assert envelope != bad.envelope
    Job.objects.filter(pk=bad.pk).update(envelope=envelope)
    assert sweeper.sweep(app).published == 1
    assert (now(good).sends, now(bad).sends) == (1, 1)
    (event,) = bad.events.all()
    assert (event.kind, "no-such-exchange" in event.detail) == ("unroutable", True)


# --- more than one database -------------------------------------------------------------------------------------------


def test_every_database_that_holds_jobs_is_swept(jobs: InProcess, second_database: str) -> None:
    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        tasks.effect.delay("here")
        tasks.effect.apply_async(("there",), using="second")
    assert databases.aliases() == ["default", "second"]
    assert jobs.sweep().published == 2
    assert {message.headers[HEADER]["using"] for message in jobs.take()} == {"default", "second"}
