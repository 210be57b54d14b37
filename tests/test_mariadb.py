"""MySQL and MariaDB: clocks, locks, deadlocks. Run with a ``DATABASE_URL`` of mysql://; see tox.ini."""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from typing import Any

import pytest
from celery import chord
from django.core import checks
from django.db import OperationalError, connection, connections, transaction
from django.test import override_settings
from django.utils import timezone

from reliable_jobs import ReliableTask, lifecycle
from reliable_jobs.models import Job, JobEvent, JobGroup, JobState
from reliable_jobs.results import states
from reliable_jobs.status import EventKind
from reliable_jobs.workflow import chords
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import Transaction
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect, Parent

pytestmark = [pytest.mark.mariadb, pytest.mark.skipif(connection.vendor != "mysql", reason="needs MySQL or MariaDB")]

jobs = inprocess.jobs


@pytest.fixture(params=["+05:00", "-08:00"])
def zone(jobs: InProcess, request: pytest.FixtureRequest) -> str:
    """A session that is not in UTC, as on a server whose system has a zone."""
    with connection.cursor() as cursor:
        cursor.execute("SET time_zone = %s", [request.param])
    yield request.param
    connection.close()


def near_now(at: datetime.datetime) -> bool:
    return abs((timezone.now() - at).total_seconds()) < 60


# --- clocks (A9) ------------------------------------------------------------------------------------------------------


def test_a9_times_are_right_in_a_session_of_another_zone(jobs: InProcess, zone: str) -> None:
    result = tasks.effect.apply_async(("one",), expires=300)
    job = jobs.row(result)
    assert near_now(job.created_at)
    assert near_now(job.due_at)
    assert 0 < (job.expires_at - timezone.now()).total_seconds() <= 300
    jobs.work()
    job = jobs.row(result)
    assert (job.status, near_now(job.finished_at), near_now(job.started_at)) == ("succeeded", True, True)
    lifecycle.record(job, "default", EventKind.CRASH, "test")
    JobEvent.objects.bulk_create([JobEvent(job_id=job.pk, kind=EventKind.CRASH)])
    assert all(near_now(event.at) for event in JobEvent.objects.all())


def test_a9_an_eta_is_neither_early_nor_late(jobs: InProcess, zone: str) -> None:
    later = tasks.effect.apply_async(("later",), eta=timezone.now() + datetime.timedelta(minutes=5))
    soon = tasks.effect.apply_async(("soon",), countdown=1)
    assert not Job.objects.due().exists()
    Job.objects.filter(pk=soon.id).update(due_at=timezone.now() - datetime.timedelta(seconds=1))
    assert jobs.sweep().published == 1
    jobs.work()
    assert (jobs.row(soon).status, jobs.row(later).status) == ("succeeded", "waiting")


def test_a9_bulk_rows_and_leases_too(jobs: InProcess, zone: str) -> None:
    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        tasks.effect.bulk_delay([("one",), ("two",)])
    assert all(near_now(job.created_at) and near_now(job.due_at) for job in Job.objects.all())
    job = Job.objects.first()
    claim = lifecycle.claim_committed(job.pk, job.content_version, "default", worker="test pid 1", lease=10.0)
    assert isinstance(claim, lifecycle.Claim)
    assert near_now(Job.objects.get(pk=job.pk).lease_at)
    assert not Job.objects.lost_runs().exists()


def test_a9_a_check_names_a_session_in_another_zone_than_django_stores(jobs: InProcess, zone: str) -> None:
    def found() -> list[Any]:
        messages = checks.run_checks(tags=[checks.Tags.database], databases=["default"])
        return [message for message in messages if message.id == "reliable_jobs.W027"]

    assert not found(), "stored in UTC: the session's zone does not matter"
    connection.settings_dict["TIME_ZONE"] = "Asia/Tokyo"
    try:
        for name in ("timezone", "timezone_name"):
            vars(connections["default"]).pop(name, None)
        assert "Asia/Tokyo" in found()[0].msg
    finally:
        connection.settings_dict["TIME_ZONE"] = None
        for name in ("timezone", "timezone_name"):
            vars(connections["default"]).pop(name, None)


# --- locks (A10) ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I2")
def test_a10_a_lock_that_is_no_runs_is_waited_for(jobs: InProcess) -> None:
    """A scan that examines the row holds it for a moment; its message is not dropped."""
    result = tasks.effect.delay("one")
    scan = Transaction(lambda: list(Job.objects.filter(worker="").select_for_update()))
    releasing = threading.Timer(0.5, scan.end)
    releasing.start()
    jobs.work()
    releasing.join()
    assert jobs.row(result).status == "succeeded"
    assert Effect.objects.count() == 1


@pytest.mark.promise("I4")
def test_a10_a_run_is_not_waited_for_to_its_end(jobs: InProcess) -> None:
    result = tasks.effect.delay("one")
    run = Transaction(lambda: lifecycle.claim_atomic(jobs.row(result).pk, 0, "default"))
    began = time.monotonic()
    jobs.work()
    assert time.monotonic() - began < 15
    run.end()
    assert Effect.objects.count() == 0


# --- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I3")
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("rounds", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_two_last_parts_that_commit_together_write_one_body(jobs: InProcess, isolation: str, rounds: int) -> None:
    for _ in range(rounds):
        chord([tasks.effect.si("one"), tasks.effect.si("two")], tasks.effect.si("body")).apply_async()
        barrier = threading.Barrier(2)

        def end(part: Job, barrier: threading.Barrier = barrier) -> None:
            try:
                with connection.cursor() as cursor:
                    cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation}")
                with transaction.atomic():
                    Job.objects.filter(pk=part.pk).update(status="succeeded", finished_at=timezone.now())
                    barrier.wait(20)
                chords.part_ended(app, part.owes, "default")
            finally:
                connections.close_all()

        parts = Job.objects.filter(owes__isnull=False, status="waiting")
        threads = [threading.Thread(target=end, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert list(JobGroup.objects.values_list("state", flat=True)) == ["done"]
        assert Job.objects.count() == 3
        Job.objects.all().delete()
        JobGroup.objects.all().delete()


# --- deadlocks --------------------------------------------------------------------------------------------------------


def _met(swallow: bool) -> None:
    """Update one row, then one that another session has updated, which wants the first: InnoDB ends this transaction,
    the smaller one."""
    Effect.objects.create(name="before")
    Parent.objects.filter(name="a").update(name="a1")
    _met.reached.set()  # type: ignore[attr-defined]
    _met.other_waits()  # type: ignore[attr-defined]
    # By hand: after an error of the ORM's own writes Django refuses the rest of the transaction by itself.
    with contextlib.suppress(OperationalError) if swallow else contextlib.nullcontext(), connection.cursor() as cursor:
        cursor.execute("UPDATE testapp_parent SET name = 'b1' WHERE name = 'b'")
    Effect.objects.create(name="after")


class Opponent(threading.Thread):
    """Has updated b, and many rows more; wants a once the other has it. ``before`` says whether it takes part."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.has_b, self.reached = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            with transaction.atomic():
                Parent.objects.filter(name="b").update(name="b0")
                Parent.objects.bulk_create([Parent(name=f"more {n}") for n in range(200)])
                self.has_b.set()
                self.reached.wait(20)
                Parent.objects.filter(name="a").update(name="a0")
                transaction.set_rollback(True)
        finally:
            connections.close_all()


def _wait_for_the_opponent() -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM information_schema.innodb_lock_waits")
            if cursor.fetchone()[0]:
                return
        time.sleep(0.02)


@pytest.mark.promise("I3")
@pytest.mark.parametrize("swallow", [False, True], ids=["raised", "swallowed"])
def test_a_deadlock_in_a_task_function_discards_its_whole_transaction(jobs: InProcess, swallow: bool) -> None:
    """Also the claim, and what it wrote before. A function that goes on must not be settled as if nothing were."""
    for name in ("a", "b"):
        Parent.objects.create(name=name)
    opponent = Opponent()
    _met.reached, _met.other_waits = opponent.reached, _wait_for_the_opponent  # type: ignore[attr-defined]
    opponent.start()
    assert opponent.has_b.wait(20)

    @app.task(base=ReliableTask, name=f"tests.deadlock_{swallow}", shared=False)
    def deadlock() -> None:
        _met(swallow)

    try:
        result = deadlock.delay()
        jobs.work()
        opponent.join(20)
        names = sorted(Effect.objects.values_list("name", flat=True))
        job = jobs.row(result)
        assert names == [], f"{job.status} {job.error}"
        assert job.status != "succeeded"
        if swallow:
            assert "a deadlock that the task function caught" in job.error
        else:
            assert (job.status, job.failures) == ("waiting", 0)
    finally:
        app.tasks.pop(f"tests.deadlock_{swallow}", None)


# --- what a run says of itself ----------------------------------------------------------------------------------------


def test_a_state_is_written_beside_the_run_that_holds_the_row(jobs: InProcess) -> None:
    """InnoDB's INSERT … SELECT may ask for a lock on the row that it reads; the run's would be waited for."""
    result = tasks.effect.delay("x")
    with transaction.atomic():
        Job.objects.select_for_update().get(pk=result.id)
        for step in (1, 2):
            assert states.say(jobs.row(result).pk, "PROGRESS", f'{{"step": {step}}}')
        seen: list[Any] = []
        reader = threading.Thread(target=lambda: seen.append((JobState.objects.get().meta, connection.close())[0]))
        reader.start()
        reader.join(10)
        assert seen == ['{"step": 2}']
    assert not states.say(jobs.row(result).pk, "STARTED", None, weak=True)
    assert app.AsyncResult(result.id).state == "PROGRESS"
