"""OUTBOX_TASKS: calls by name, and of tasks that are not reliable, are rows of the caller's transaction."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from celery import Task, chord, group, shared_task, signature
from celery.beat import ScheduleEntry, Scheduler
from django.db import transaction
from django.utils import timezone

from reliable_jobs import ReliableTask
from reliable_jobs.errors import NotCommitted
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs


def note(*args: Any, name: str) -> str:
    Effect.objects.create(name=name)
    return name


plain = shared_task(name="test_outbox_tasks.plain")(note)
rel = shared_task(base=ReliableTask, name="test_outbox_tasks.rel")(note)
other = shared_task(name="test_outbox_others.plain")(note)
UNKNOWN = "test_outbox_tasks.elsewhere"


@shared_task(name="test_outbox_tasks.goes_on", bind=True, max_retries=3)
def goes_on(self: Task[..., Any], how: str, name: str) -> None:
    """Goes on out of a transaction that its own exception rolls back."""
    if self.request.retries:
        note(name=name)
        return
    with transaction.atomic():
        if how == "retry":
            self.retry(countdown=0)
        self.replace(plain.si(name=name))


@pytest.fixture
def captured(jobs: InProcess, settings: Any) -> InProcess:
    settings.RELIABLE_JOBS = {"OUTBOX_TASKS": ["test_outbox_tasks.*"]}
    return jobs


CALLS: dict[str, Callable[[], Any]] = {
    "plain": lambda: plain.delay(name="a"),
    "plain by name": lambda: app.send_task(plain.name, kwargs={"name": "a"}),
    "plain signature": lambda: plain.s(name="a").apply_async(),
    "reliable by name": lambda: app.send_task(rel.name, kwargs={"name": "a"}),
    "elsewhere": lambda: app.send_task(UNKNOWN, kwargs={"name": "a"}),
    "elsewhere by signature": lambda: signature(UNKNOWN, kwargs={"name": "a"}, app=app).apply_async(),
}


@pytest.mark.promise("I1")
@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_sent_with_the_commit_and_goes_with_the_rollback(captured: InProcess, call: str) -> None:
    with transaction.atomic():
        CALLS[call]()
        assert Job.objects.count() == 1
        transaction.set_rollback(True)
    assert (captured.take(), Job.objects.count()) == ([], 0)
    with transaction.atomic():
        result = CALLS[call]()
        assert captured.take() == []
    (message,) = captured.take()
    row = captured.row(result)
    assert row.status == ("waiting" if call == "reliable by name" else "sent")
    assert row.relay_only == (call != "reliable by name")
    if not call.startswith("elsewhere"):
        captured.deliver(message)
        assert captured.effects("a") == 1


@pytest.mark.parametrize("call", CALLS)
def test_a_call_in_autocommit_is_sent_at_once(captured: InProcess, call: str) -> None:
    CALLS[call]()
    assert (len(captured.take()), Job.objects.count()) == (1, 1)


@pytest.mark.promise("I2")
def test_what_the_broker_has_not_confirmed_is_published_again(captured: InProcess, settings: Any) -> None:
    settings.RELIABLE_JOBS = {**settings.RELIABLE_JOBS, "DISPATCH": "relay"}
    result = plain.delay(name="a")
    assert (captured.take(), captured.row(result).status) == ([], "waiting")
    captured.sweep()
    captured.work()
    assert (captured.effects("a"), captured.row(result).status) == (1, "sent")


def test_a_reliable_tasks_own_options_are_kept_by_name(captured: InProcess) -> None:
    at = timezone.now() + datetime.timedelta(hours=1)
    result = app.send_task(rel.name, kwargs={"name": "a"}, eta=at, expires=7200, priority=3, link=plain.si(name="b"))
    row = captured.row(result)
    assert (row.due_at, row.priority) == (at, 3)
    assert row.expires_at is not None
    Job.objects.update(due_at=timezone.now())
    captured.finish()
    assert (captured.effects("a"), captured.effects("b")) == (1, 1)


def test_a_plain_tasks_delay_is_spent_in_the_row_and_its_expiry_travels(captured: InProcess) -> None:
    result = plain.apply_async(kwargs={"name": "a"}, countdown=3600, expires=7200, ignore_result=True)
    assert captured.take() == []
    Job.objects.update(due_at=timezone.now())
    captured.sweep()
    (message,) = captured.take()
    headers = message.headers
    assert (headers["eta"], headers["ignore_result"], headers["id"]) == (None, True, result.id)
    left = datetime.datetime.fromisoformat(headers["expires"]) - timezone.now()
    assert 7100 < left.total_seconds() < 7200


def test_what_follows_a_plain_task_is_started_by_its_worker(captured: InProcess) -> None:
    plain.apply_async(kwargs={"name": "a"}, link=rel.si(name="b"))
    captured.finish()
    assert (captured.effects("a"), captured.effects("b")) == (1, 1)


@pytest.mark.parametrize("task_id", ["nightly", "6d5e2c5e-47cf-4a17-9f2c-0a2a6a0a5c0e"])
def test_an_id_that_is_used_again_is_another_message(captured: InProcess, task_id: str) -> None:
    for name in "ab":
        plain.apply_async(kwargs={"name": name}, task_id=task_id)
        captured.work()
    assert ([captured.effects(name) for name in "ab"], Job.objects.count()) == ([1, 1], 1)


def test_a_group_is_all_or_nothing(captured: InProcess) -> None:
    with pytest.raises(TypeError):
        group(plain.s(name="a"), plain.s(name="b"), plain.s(name=object())).apply_async()
    assert (captured.take(), Job.objects.count()) == ([], 0)
    group(other.s(name="c"), plain.s(name="a")).apply_async()
    assert Job.objects.count() == 2
    captured.work()
    assert [captured.effects(name) for name in "abc"] == [1, 0, 1]


def test_a_result_is_not_waited_for_in_the_transaction_of_its_call(captured: InProcess) -> None:
    with transaction.atomic():
        result = plain.delay(name="a")
        with pytest.raises(NotCommitted):
            result.get(timeout=5)


# --- what is left to Celery -------------------------------------------------------------------------------------------


def test_other_names_are_celerys(captured: InProcess) -> None:
    with transaction.atomic():
        other.delay(name="a")
        assert len(captured.take()) == 1
    assert Job.objects.count() == 0


@pytest.mark.parametrize("name", ["celery.backend_cleanup", "celery.chord_unlock", "reliable_jobs.prune"])
def test_internal_messages_are_never_rows(captured: InProcess, settings: Any, name: str) -> None:
    settings.RELIABLE_JOBS = {"OUTBOX_TASKS": ["*"]}
    app.send_task(name)
    assert (len(captured.take()), Job.objects.count()) == (1, 0)


def test_a_caller_who_gives_the_way_keeps_it(captured: InProcess) -> None:
    with transaction.atomic(), app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        plain.apply_async(kwargs={"name": "a"}, producer=producer)
        plain.apply_async(kwargs={"name": "b"}, connection=connection)
        app.send_task(rel.name, kwargs={"name": "c"}, publisher=producer)
        assert (len(captured.take()), Job.objects.count()) == (3, 0)


def test_beat_publishes_by_a_producer_of_its_own(captured: InProcess) -> None:
    """An entry whose task is known in the beat process, and reliable, is a job; any other is Celery's."""
    scheduler = Scheduler(app=app, lazy=True)
    for name in (rel.name, plain.name, UNKNOWN):
        entry = ScheduleEntry(name=name, task=name, schedule=1.0, kwargs={"name": "a"}, app=app)
        scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
    scheduler.connection.close()
    assert len(captured.take()) == 3
    assert list(Job.objects.values_list("task", flat=True)) == [rel.name]


@pytest.mark.promise("I2")
@pytest.mark.parametrize("how", ["retry", "replace"])
def test_a_plain_task_that_goes_on_out_of_a_transaction_is_not_lost(captured: InProcess, how: str) -> None:
    goes_on.delay(how, name="a")
    captured.work()
    captured.work()
    assert captured.effects("a") == 1


def test_a_chord_of_plain_tasks_is_celerys(captured: InProcess) -> None:
    chord([plain.si(name="a"), plain.si(name="b")], plain.si(name="c")).apply_async()
    assert Job.objects.count() == 2
    captured.finish()
    assert [captured.effects(name) for name in "abc"] == [1, 1, 1]
    assert set(Job.objects.values_list("status", "owes")) == {("sent", None)}
