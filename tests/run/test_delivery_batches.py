"""Adaptive delivery: several jobs in one message, each delivered as if it had come alone."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, chord, shared_task
from celery.app import trace as app_trace
from celery.exceptions import Ignore, InvalidTaskError, Reject, TaskRevokedError, Terminated, WorkerTerminate
from celery.worker import state as worker_state
from celery.worker.request import create_request_cls
from django.db import OperationalError, connection, connections, transaction
from django.test import override_settings
from django.utils import timezone
from kombu import Exchange, Queue

from reliable_jobs import ReliableTask, lifecycle
from reliable_jobs.dispatch import bundles, run_times
from reliable_jobs.errors import NotRecorded
from reliable_jobs.message.row_to_message import HEADER, outgoing
from reliable_jobs.models import Job, JobEvent, Stat
from reliable_jobs.models.statistics import HOUR
from reliable_jobs.run import arrival, bundle, bundle_apart, kept_connections, pools, task_events, tracing
from reliable_jobs.run.state import NotStarted
from reliable_jobs.worker import requests, revocation
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import PATIENCE, wait_until
from tests.support.inprocess import HOSTNAME, InProcess
from tests.testapp.models import Effect

jobs, second_database = inprocess.jobs, inprocess.second_database
HEARD: list[tuple[str, Any]] = []
ACT: dict[int, Callable[[], Any]] = {}


@pytest.fixture(autouse=True, params=[True, False], ids=["connections kept", "closed"])
def _batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kept_connections, "active", request.param)
    # A busy machine takes more than a second over four jobs: only the tests of that second have one.
    monkeypatch.setattr(bundle_apart, "LONGEST", 60.0)
    run_times.forget()
    HEARD.clear()
    ACT.clear()
    yield
    run_times.forget()


class Told(ReliableTask):
    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        HEARD.append(("on_success", args[0]))

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HEARD.append(("on_failure", args[0]))


@shared_task(base=Told, name="test_delivery_batches.one", bind=True)
def one(self: Any, number: int, what: str = "") -> Any:
    HEARD.append(("run", number))
    Effect.objects.create(name=f"one {number}")
    if number in ACT:
        return ACT[number]()
    if what == "fail":
        raise ValueError("no")
    if what == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    if what == "snooze" and HEARD.count(("run", number)) == 1:
        raise self.snooze(0)
    if what == "ignore":
        raise Ignore("as it wished")
    if what == "child":
        one.delay(number + 1000)
    if what == "commit":
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")
    transaction.on_commit(lambda: HEARD.append(("hook", number)))
    return {"id": self.request.id, "number": number}


@shared_task(base=ReliableTask, name="test_delivery_batches.collected")
def collected(values: Any) -> None:
    Effect.objects.create(name=f"collected {sorted(value['number'] for value in values)}")


def took(milliseconds: float, task: str = "test_delivery_batches.one", runs: int = 100, **age: int) -> None:
    """The statistics say how long a task's runs have taken within this hour."""
    bucket = next(number for number in range(24) if milliseconds < 2**number)
    at = timezone.now().replace(minute=0, second=0, microsecond=0) - timezone.timedelta(**age)
    counts: dict[str, Any] = {"n": runs, f"r{bucket}": runs}
    Stat.objects.create(span=HOUR, at=at, task=task, queue="q", ending="succeeded", release="", **counts)
    run_times.forget()


def enqueue(count: int, odd: dict[int, str] | None = None, **options: Any) -> list[uuid.UUID]:
    """In one transaction, so that its commit can share messages."""
    with transaction.atomic():
        return [
            uuid.UUID(one.apply_async((number, (odd or {}).get(number, "")), **options).id) for number in range(count)
        ]


def one_message(jobs: InProcess, count: int = 4, odd: dict[int, str] | None = None) -> tuple[list[uuid.UUID], Any]:
    """The ids of some jobs, and the one message that carries them."""
    ids = enqueue(count, odd)
    (first, *_) = jobs.take()
    rows = Job.objects.in_bulk(ids)
    pointers = [[job_id.hex, rows[job_id].content_version] for job_id in ids]
    headers = {**first.headers, "id": str(uuid.uuid4()), "task": bundles.TASK, "argsrepr": "()", "timelimit": None}
    headers.pop(HEADER)
    body = json.dumps([[one.name, "default", pointers], {}, {}]).encode()
    return ids, jobs.through_broker(body, "application/json", "utf-8", headers, {"delivery_mode": 2})


def sizes(messages: list[Any]) -> list[int]:
    return [len(json.loads(m.body)[0][2]) if m.headers["task"] == bundles.TASK else 1 for m in messages]


def effects() -> list[str]:
    return sorted(Effect.objects.values_list("name", flat=True))


def statuses(ids: list[uuid.UUID]) -> list[str]:
    rows = Job.objects.in_bulk(ids)
    return [rows[job_id].status for job_id in ids]


# --- how many jobs a message carries ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("milliseconds", "jobs_at_once", "expected"),
    [
        (0.5, 400, [100] * 4),
        (3, 400, [25] * 16),  # between 2 and 4 ms: as if all took 4
        (30, 40, [3] * 13 + [1]),
        (60, 40, [1] * 40),
        (5000, 40, [1] * 40),
        (0.5, 40, [10] * 4),  # other children are to get some
        (0.5, 19, [1] * 19),
    ],
)
def test_a_message_carries_what_takes_a_tenth_of_a_second(
    jobs: InProcess, milliseconds: float, jobs_at_once: int, expected: list[int]
) -> None:
    took(milliseconds)
    enqueue(jobs_at_once)
    assert sorted(sizes(jobs.take()), reverse=True) == expected
    assert set(Job.objects.values_list("sends", flat=True)) == {1}


def test_where_nothing_is_known_of_late_jobs_travel_alone(jobs: InProcess) -> None:
    took(0.5, runs=19)
    took(0.5, task="another")
    took(0.5, hours=4)
    enqueue(40)
    assert sizes(jobs.take()) == [1] * 40


def test_the_run_times_are_asked_for_once_a_minute(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    took(0.5)
    enqueue(40)
    Stat.objects.all().delete()
    enqueue(40)
    assert sizes(jobs.take()) == [10] * 8
    monkeypatch.setattr(run_times, "KEPT", 0.0)
    run_times.forget()
    enqueue(40)
    assert sizes(jobs.take()) == [1] * 40


@pytest.mark.promise("I5")
def test_run_times_that_cant_be_read_cost_nothing(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(using: str) -> Any:
        raise OperationalError("away")

    monkeypatch.setattr(run_times, "_look", away)
    enqueue(40)
    assert sizes(jobs.take()) == [1] * 40


def test_the_setting_has_each_job_travel_alone(jobs: InProcess) -> None:
    took(0.5)
    with override_settings(RELIABLE_JOBS={"DELIVERY_BATCH": 1}):
        enqueue(40)
    assert sizes(jobs.take()) == [1] * 40


def test_the_sweeper_packs_first_sends_and_sends_later_ones_alone(jobs: InProcess) -> None:
    took(0.5)
    enqueue(40, countdown=1)
    created = Job.objects.order_by("pk")[0].created_at
    Job.objects.update(due_at=created)
    assert jobs.sweep().published == 40
    assert sizes(jobs.take()) == [10] * 4
    Job.objects.update(check_at=created)
    assert jobs.sweep().republished == 40
    assert sizes(jobs.take()) == [1] * 40


@pytest.mark.parametrize(
    "attributes",
    [
        {"atomic": False},
        {"reruns": False},
        {"rate_limit": "10/s"},
        {"time_limit": 9.0},
        {"soft_time_limit": 9.0, "time_limit": 20.0},
        {"acks_late": False},
        {"Request": "celery.worker.request:Request"},
        {"Strategy": "tests.run.test_delivery_batches:strategy"},
    ],
    ids=lambda attributes: next(iter(attributes)),
)
def test_jobs_that_a_worker_has_to_see_travel_alone(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any]
) -> None:
    took(0.5)
    for name, value in attributes.items():
        monkeypatch.setattr(type(app.tasks[one.name]), name, value)
    for kept in ("template", "_exec_options"):  # by us and by Celery: what is made of them now is no other test's
        monkeypatch.setattr(app.tasks[one.name], kept, None)
    enqueue(40)
    assert sizes(jobs.take()) == [1] * 40


@pytest.mark.parametrize("options", [{"time_limit": 30}, {"compression": "zlib"}], ids=str)
def test_calls_with_options_of_their_own_travel_alone(jobs: InProcess, options: dict[str, Any]) -> None:
    took(0.5)
    enqueue(40, **options)
    assert sizes(jobs.take()) == [1] * 40


@pytest.mark.promise("I7")
@pytest.mark.parametrize("name", ["task_time_limit", "task_soft_time_limit"])
def test_with_a_short_limit_of_the_project_jobs_travel_alone(jobs: InProcess, name: str) -> None:
    took(0.5)
    before = app.conf[name]
    app.conf[name] = 8  # the task has its own by now: none
    try:
        enqueue(40)
    finally:
        app.conf[name] = before
    assert sizes(jobs.take()) == [1] * 40


def test_stamped_jobs_travel_alone(jobs: InProcess) -> None:
    took(0.5)
    with transaction.atomic():
        for number in range(40):
            signature = one.s(number)
            signature.stamp(customer="7")
            signature.apply_async()
    assert sizes(jobs.take()) == [1] * 40


def test_requeued_and_retried_jobs_travel_alone(jobs: InProcess) -> None:
    took(0.5)
    ids = enqueue(40)
    jobs.take()
    Job.objects.filter(pk__in=ids[:20]).update(failures=1, sends=0, check_at=None)
    Job.objects.filter(pk__in=ids[20:]).update(requeues=1, sends=0, check_at=None)
    assert jobs.sweep().published == 40
    assert sizes(jobs.take()) == [1] * 40


@pytest.mark.promise("I7")
@pytest.mark.parametrize("at_once", [1, 10], ids=["message shared", "transaction shared"])
@pytest.mark.parametrize(("kind", "messages"), [("topic", 4), ("headers", 40), ("", 40)])
def test_where_headers_may_route_jobs_travel_alone(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, at_once: int, kind: str, messages: int
) -> None:
    """A shared message has not those of its jobs: a headers exchange would return it."""
    monkeypatch.setattr(type(app.tasks[one.name]), "bundle", at_once, raising=False)
    if kind:
        monkeypatch.setitem(app.amqp.queues, "regional", Queue("regional", Exchange("regions", type=kind)))
    took(0.5)
    enqueue(40, headers={"region": "eu"})
    going = [dataclasses.replace(outgoing(job, "default"), exchange="regions") for job in Job.objects.all()]
    packed, _ = bundles.pack(app, going)
    assert len(packed) == messages


def test_queues_and_priorities_share_no_message(jobs: InProcess) -> None:
    took(0.5)
    with transaction.atomic():
        for number in range(20):
            one.apply_async((number,))
            one.apply_async((number,), priority=3)
    assert sorted((m.properties.get("priority") or 0, size) for m, size in with_sizes(jobs.take())) == [
        *[(0, 5)] * 4,
        *[(3, 5)] * 4,
    ]


def with_sizes(messages: list[Any]) -> list[tuple[Any, int]]:
    return list(zip(messages, sizes(messages), strict=True))


# --- each job as if it were alone -------------------------------------------------------------------------------------


@pytest.mark.promise("I3")
def test_each_job_has_a_transaction_signals_and_a_result_of_its_own(jobs: InProcess) -> None:
    took(0.5)
    ids = enqueue(40)
    done = jobs.work()
    assert [one_message.answer for one_message in done] == ["acked"] * 4
    assert statuses(ids) == ["succeeded"] * 40
    rows = Job.objects.in_bulk(ids)
    assert {(row.epoch, row.sends, row.crashes, row.failures) for row in rows.values()} == {(1, 1, 0, 0)}
    assert json.loads(rows[ids[7]].result) == {"id": str(ids[7]), "number": 7}
    assert one.AsyncResult(str(ids[7])).get(timeout=1)["number"] == 7
    inner = ["task_prerun", "task_success", "task_postrun"] * 10
    assert done[0].signals == ["task_prerun", *inner, "task_success", "task_postrun"]
    # What follows a commit comes before the next function.
    in_order = [(what, number) for number in range(40) for what in ("run", "hook", "on_success")]
    assert in_order == HEARD
    assert len(effects()) == 40


@pytest.mark.promise("I3")
@pytest.mark.parametrize(
    ("what", "status", "runs"),
    [
        ("fail", "failed", 1),
        ("retry", "succeeded", 2),
        ("snooze", "succeeded", 2),
        ("ignore", "succeeded", 1),
        ("child", "succeeded", 1),
        ("commit", "failed", 1),
    ],
)
def test_however_one_ends_its_neighbours_run_once(jobs: InProcess, what: str, status: str, runs: int) -> None:
    if what == "commit" and connection.vendor != "postgresql":
        pytest.skip("a raw COMMIT in a function is seen by libpq's transaction status, which PostgreSQL alone has")
    ids, message = one_message(jobs, odd={1: what})
    assert jobs.deliver(message).answer == "acked"
    assert [statuses(ids)[number] for number in (0, 2, 3)] == ["succeeded"] * 3, "at once, whatever becomes of it"
    jobs.finish()
    assert statuses(ids) == ["succeeded", status, "succeeded", "succeeded"]
    assert [HEARD.count(("run", number)) for number in range(4)] == [1, runs, 1, 1]
    assert [Effect.objects.filter(name=f"one {number}").count() for number in (0, 2, 3)] == [1, 1, 1]
    assert HEARD.count(("on_failure", 1)) == (status == "failed")
    assert set(Job.objects.filter(pk__in=[ids[0], *ids[2:]]).values_list("sends", "crashes")) == {(1, 0)}


@pytest.mark.promise("I3")
def test_callbacks_chains_and_parts_of_a_chord_follow(jobs: InProcess) -> None:
    took(0.5)
    with transaction.atomic():
        for number in range(10):
            one.apply_async((number,), link=one.si(number + 100))
        for number in range(10, 20):
            (one.si(number) | one.si(number + 100)).delay()
    chord([one.s(number) for number in range(200, 220)], collected.s()).delay()
    messages = jobs.take()
    assert sizes(messages) == [5] * 8
    for message in messages:
        jobs.deliver(message)
    jobs.finish()
    assert not Job.objects.exclude(status="succeeded").exists()
    made = [name for name in effects() if name.startswith("one")]
    assert len(made) == len(set(made)) == 60
    assert Effect.objects.filter(name=f"collected {list(range(200, 220))}").count() == 1


@pytest.mark.promise("I3")
def test_a_chords_part_in_a_bundle_gives_the_body_its_value(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that adds ``bundle`` to the task meets messages that were packed by the one before it."""
    monkeypatch.setattr(type(app.tasks[one.name]), "ignore_result", True)
    took(0.5)
    chord([one.s(number) for number in range(20)], collected.s()).delay()
    messages = jobs.take()
    assert sizes(messages) == [5] * 4
    monkeypatch.setattr(type(app.tasks[one.name]), "bundle", 100, raising=False)
    for message in messages:
        jobs.deliver(message)
    jobs.finish()
    assert Effect.objects.filter(name=f"collected {list(range(20))}").count() == 1


@pytest.mark.promise("I7")
def test_each_row_is_looked_at_for_itself(jobs: InProcess) -> None:
    ids, message = one_message(jobs, count=7)
    rows = Job.objects.filter
    created = Job.objects.get(pk=ids[0]).created_at
    rows(pk=ids[0]).update(payload=b"no json")
    rows(pk=ids[1]).update(content_type="application/x-unheard-of")
    rows(pk=ids[2]).update(expires_at=created)
    rows(pk=ids[3]).update(payload=b'[[], {"unknown": 1}, {}]')
    rows(pk=ids[4]).update(content_version=1)  # sent again, as it is now
    rows(pk=ids[5]).delete()
    assert jobs.deliver(message).answer == "acked"
    assert statuses(ids[6:]) == ["succeeded"], "nothing stops the others"
    assert effects() == ["one 6"]
    found = Job.objects.in_bulk(ids)
    assert (found[ids[2]].status, found[ids[4]].status) == ("expired", "waiting")
    assert [found[ids[number]].sends for number in (0, 1, 4)] == [2, 2, 1]
    sent = {message.headers["id"] for message in jobs.take()}
    assert {str(ids[0]), str(ids[1])} <= sent
    assert found[ids[3]].reason != "", "a signature that does not fit is told on the row"


@pytest.mark.promise("I7")
def test_jobs_with_a_past_are_sent_alone(jobs: InProcess) -> None:
    ids, message = one_message(jobs, count=5)
    for job_id, column in zip(ids[1:], ("crashes", "failures", "interruptions", "requeues"), strict=True):
        Job.objects.filter(pk=job_id).update(**{column: 1})
    jobs.deliver(message)
    assert effects() == ["one 0"]
    assert sorted(message.headers["id"] for message in jobs.take()) == sorted(map(str, ids[1:]))


@pytest.mark.promise("I4")
def test_copies_of_the_message_run_nothing_again(jobs: InProcess) -> None:
    ids, message = one_message(jobs)
    for redelivered in (False, False, True):
        jobs.deliver(message, redelivered=redelivered)
    assert effects() == [f"one {number}" for number in range(4)]
    assert jobs.take() == []
    assert set(Job.objects.filter(pk__in=ids).values_list("sends", flat=True)) == {1}


@pytest.mark.promise("I4")
def test_a_cancelled_and_a_running_one_are_left_to_themselves(jobs: InProcess) -> None:
    ids, message = one_message(jobs)
    lifecycle.cancel([ids[1]], "default", actor="test")
    claim = lifecycle.claim_committed(ids[2], 0, "default", worker="another", lease=60.0)
    assert isinstance(claim, lifecycle.Claim)
    jobs.deliver(message)
    assert statuses(ids) == ["succeeded", "cancelled", "running", "succeeded"]
    assert jobs.take() == []


@pytest.mark.promise("I6")
def test_a_redelivered_message_is_taken_apart_and_each_start_is_counted(jobs: InProcess) -> None:
    ids, message = one_message(jobs)
    jobs.deliver(message, redelivered=True)
    assert effects() == []
    messages = jobs.take()
    assert sorted(message.headers["id"] for message in messages) == sorted(map(str, ids))
    assert {message.headers[HEADER]["send"] for message in messages} == {2}, "a committed claim, which counts"
    for single in messages:
        jobs.deliver(single)
    assert statuses(ids) == ["succeeded"] * 4


def test_a_redelivered_message_waits_for_nobody_when_all_are_sent(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It paused for 0.1 s. A killed worker leaves several such messages to the others."""
    _, message = one_message(jobs)
    monkeypatch.setattr(bundle.time, "sleep", lambda seconds: pytest.fail(f"paused for {seconds} s"))
    jobs.deliver(message, redelivered=True)
    assert len(jobs.take()) == 4


@pytest.mark.promise("I6")
@pytest.mark.parametrize("at_once", [1, 100], ids=["message shared", "transaction shared"])
def test_a_store_that_kills_the_process_keeps_no_neighbour_back(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    ids, message = one_message(jobs)
    monkeypatch.setattr(type(app.tasks[one.name]), "bundle", at_once, raising=False)
    Job.objects.filter(pk=ids[0]).update(status="succeeded", finished_at=timezone.now())

    def dies(*args: Any) -> None:
        raise WorkerTerminate

    monkeypatch.setattr(bundle_apart, "hand_over", dies)
    for expected in (sorted(map(str, ids[1:])), []):  # again and again, but each neighbour is sent once
        with pytest.raises(WorkerTerminate):
            jobs.deliver(message, redelivered=True)
        assert sorted(message.headers["id"] for message in jobs.take()) == expected


@pytest.mark.promise("I5")
def test_what_the_tracer_gives_back_is_sent_alone(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, message = one_message(jobs)
    real = bundle_apart.trace

    def trace(task: Any, task_id: str, *args: Any) -> Any:
        if task_id == str(ids[2]):  # as where its row is held for longer than HOLD
            return tracing.answer_of(Reject("held for too long", requeue=True))
        if task_id == str(ids[3]):  # and where nothing can be written
            return tracing.answer_of(NotRecorded("away"))
        return real(task, task_id, *args)

    monkeypatch.setattr(bundle_apart, "trace", trace)
    assert jobs.deliver(message).answer == "acked"
    assert sorted(message.headers["id"] for message in jobs.take()) == sorted(map(str, ids[2:]))
    assert effects() == ["one 0", "one 1"]


@pytest.mark.promise("I5")
def test_a_database_that_is_away_for_a_moment_is_waited_for(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, message = one_message(jobs)
    real, fails = bundle_apart.Turns.read, [1, 1]

    def read(self: Any) -> None:
        if fails:
            fails.pop()
            raise OperationalError("server closed the connection unexpectedly")
        real(self)

    monkeypatch.setattr(bundle_apart.Turns, "read", read)
    jobs.deliver(message)
    assert statuses(ids) == ["succeeded"] * 4


class Clock:
    """In place of the module ``time``: each sleep and each look takes no time but by this clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.promise("I5")
@pytest.mark.parametrize("at_once", [1, 100], ids=["message shared", "transaction shared"])
def test_whatever_waits_for_the_database_a_message_is_held_once(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """HOLD is below the broker's ``consumer_timeout``; twice HOLD is not."""
    ids, message = one_message(jobs)
    monkeypatch.setattr(type(app.tasks[one.name]), "bundle", at_once, raising=False)
    clock = Clock()
    for module in (arrival, bundle, bundle_apart):
        monkeypatch.setattr(module, "time", clock)

    def away_for(seconds: float, then: Callable[..., Any]) -> Callable[..., Any]:
        back_at = clock.now + seconds

        def call(*args: Any) -> Any:
            if clock.now < back_at:
                raise NotStarted("server closed the connection unexpectedly")
            return then(*args)

        return call

    monkeypatch.setattr(bundle_apart.Turns, "read", away_for(1000.0, bundle_apart.Turns.read))
    monkeypatch.setattr(bundle.Try, "run", away_for(1000.0, lambda self: 0))
    monkeypatch.setattr(bundle, "_send_some", away_for(10_000.0, lambda *args: set()))
    began = clock.now
    assert jobs.deliver(message).answer == "requeued"
    assert 1200.0 <= clock.now - began <= 1215.0
    assert statuses(ids) == ["waiting"] * 4


# --- time -------------------------------------------------------------------------------------------------------------


def second_is_over(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """LONGEST is over as soon as this is called, by a function that runs, however late it has begun."""
    over, watch = threading.Event(), bundle_apart.Turns._watch
    monkeypatch.setattr(bundle_apart, "LONGEST", PATIENCE)

    def then_look(self: bundle_apart.Turns) -> None:
        assert over.wait(PATIENCE)
        watch(self)

    def is_over() -> None:
        monkeypatch.setattr(bundle_apart, "LONGEST", 0.0)
        over.set()

    monkeypatch.setattr(bundle_apart.Turns, "_watch", then_look)
    return is_over


@pytest.mark.promise("I4")
def test_behind_a_slow_function_the_others_are_sent_alone_while_it_runs(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer: the thread can send nothing while the function's transaction is open")
    is_over = second_is_over(monkeypatch)
    ids, message = one_message(jobs)
    elsewhere: list[Any] = []

    def until_they_have_gone() -> None:
        is_over()
        wait_until(lambda: len(elsewhere) == 2 or elsewhere.extend(jobs.take()), "the others were sent")

    ACT[1] = until_they_have_gone
    assert jobs.deliver(message).answer == "acked"
    assert statuses(ids) == ["succeeded", "succeeded", "waiting", "waiting"]
    assert sorted(m.headers["id"] for m in elsewhere) == sorted(map(str, ids[2:]))
    assert jobs.take() == [], "once"
    assert effects() == ["one 0", "one 1"]


def test_after_a_second_no_further_one_begins(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_apart.Turns, "_started", lambda self: None)  # no room for a thread
    ids, message = one_message(jobs)
    ACT[0] = lambda: monkeypatch.setattr(bundle_apart, "LONGEST", 0.0)  # the function has taken so long
    jobs.deliver(message)
    assert statuses(ids) == ["succeeded", *["waiting"] * 3]
    assert len(jobs.take()) == 3


@pytest.mark.promise("I2")
def test_where_the_thread_cant_send_them_the_child_does(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = second_is_over(monkeypatch)
    ids, message = one_message(jobs)
    tried = threading.Event()
    real = bundle._send_some

    def send_some(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            tried.set()
            raise OperationalError("away")
        return real(*args)

    monkeypatch.setattr(bundle, "_send_some", send_some)

    def until_it_has_tried() -> None:
        is_over()
        tried.wait(PATIENCE)

    ACT[0] = until_it_has_tried
    jobs.deliver(message)
    assert tried.is_set()
    assert statuses(ids) == ["succeeded", *["waiting"] * 3]
    assert sorted(message.headers["id"] for message in jobs.take()) == sorted(map(str, ids[1:]))


# --- the worker's parent process --------------------------------------------------------------------------------------


class Handed:
    """What the parent hands to its child."""

    def __init__(self) -> None:
        self.request: dict[str, Any] = {}
        self.limits: tuple[Any, Any] = (None, None)

    def apply_async(self, trace: Any, args: Any = (), **options: Any) -> None:
        self.request, self.limits = args[2], (options["timeout"], options["soft_timeout"])


def parent(message: Any, eventer: Any = None) -> tuple[Any, Handed]:
    """The parent's request of a message that it has just handed over."""
    pool, task = Handed(), app.tasks[bundles.TASK]
    kind = create_request_cls(requests.BundleRequest, task, pool, HOSTNAME, eventer, app=app)
    request = kind(message, app=app, hostname=HOSTNAME, task=task, eventer=eventer)
    request.execute_using_pool(pool)
    return request, pool


@pytest.mark.parametrize(
    ("of_task", "of_worker", "expected"),
    [
        ((None, None), (None, None), (None, None)),
        ((60.0, 30.0), (None, None), (61.0, 31.0)),
        ((None, None), (60, None), (61.0, None)),  # celery worker --time-limit 60
        ((60.0, None), (300.0, 20.0), (61.0, 21.0)),
    ],
)
def test_the_messages_limits_are_a_second_longer_than_a_jobs(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, of_task: Any, of_worker: Any, expected: Any
) -> None:
    _, message = one_message(jobs)
    monkeypatch.setattr(type(app.tasks[one.name]), "time_limit", of_task[0])
    monkeypatch.setattr(type(app.tasks[one.name]), "soft_time_limit", of_task[1])
    monkeypatch.setattr(pools, "limits_of_worker", of_worker)
    _, pool = parent(message)
    assert (pool.limits, pool.request[bundle_apart.ALONE]) == (expected, [])


@pytest.mark.parametrize("of_tasks", [True, False])
def test_the_heartbeats_of_every_worker_are_no_task_events(jobs: InProcess, of_tasks: bool) -> None:
    """As the consumer's Events step makes its dispatcher."""
    _, message = one_message(jobs)
    with app.connection_for_write() as link:
        dispatcher = app.events.Dispatcher(link, enabled=True, groups=None if of_tasks else ["worker"])
        _, pool = parent(message, dispatcher)
        assert (task_events.TOLD in pool.request) == of_tasks
        dispatcher.groups.add("task")  # celery control enable_events
        _, pool = parent(message, dispatcher)
        assert pool.request[task_events.TOLD] == app.clock.value
        assert pool.request[bundle_apart.ALONE] == []


def test_an_agent_that_wraps_tracers_sees_each_job_and_no_message(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New Relic's wraps the task that a tracer is made for, and knows one transaction at a time: its agent would see
    what shares a message as parts of one call, and in no trace of theirs."""
    inside: list[str] = []
    seen: list[tuple[str, ...]] = []
    plain = app_trace.build_tracer

    class Watched:
        def __init__(self, task: Any) -> None:
            self.task = task

        def __getattr__(self, name: str) -> Any:
            return getattr(self.task, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            inside.append(self.name)
            seen.append(tuple(inside))
            try:
                return self.task(*args, **kwargs)
            finally:
                inside.pop()

    @functools.wraps(plain)
    def build_tracer(name: str, task: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(name, Watched(task), *args, **kwargs)

    both = [app.tasks[one.name], app.tasks[bundles.TASK]]
    monkeypatch.setattr(app_trace, "build_tracer", build_tracer)
    try:
        for task in both:
            task.__trace__ = build_tracer(task.name, task, app=app)
        _, message = one_message(jobs)
        assert jobs.deliver(message).answer == "acked"
    finally:
        monkeypatch.undo()
        for task in both:
            task.__trace__ = None
    assert seen == [(one.name,)] * 4


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_says_nothing_holds_up_nobody_who_tells_of_jobs(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        unheard = Celery("silent", broker=f"{scheme}://127.0.0.1:{port}//")
        events = task_events.TaskEvents(unheard, HOSTNAME, 0)

        def tell() -> None:
            for number in range(2 * task_events._MOST_MESSAGES):
                events.starts({"id": str(number), "task": "one"})
                events.tell()

        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(PATIENCE)
        assert not telling.is_alive()
    # Its thread would still connect, and be refused, while other tests count what is left in memory.
    teller = task_events._teller(unheard)
    wait_until(lambda: teller._handed_over.empty() and teller._free.is_set(), "every event is given up")


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_is_gone_is_given_up_for_an_event(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    """At its first refusal: kombu would try for as long as a connection may take, for each event, and the next wait."""
    many = 40
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        gone = Celery("gone", broker=f"{scheme}://127.0.0.1:{bound.getsockname()[1]}//")
        with caplog.at_level(logging.INFO, task_events.__name__):
            events = task_events.TaskEvents(gone, HOSTNAME, 0)
            for number in range(many):
                for job in "ab":
                    events.starts({"id": f"{job}{number}", "task": "one"})
                events.tell()
            wait_until(
                lambda: caplog.text.count("Monitors were not told of 4 task events") == many,
                "the events are given up",
                seconds=many / 2,
            )


def test_events_carry_the_clock_of_the_workers_parent_process() -> None:
    events = task_events.TaskEvents(app, HOSTNAME, app.clock.value + 1000)
    events.starts({"id": "1", "task": "one"})
    assert app.clock.value > 1000
    assert [event["clock"] for event in events._untold] == [app.clock.value - 1, app.clock.value]


def test_of_a_redelivered_message_monitors_are_told_the_successes(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told at a message's end, other ends at once."""
    ids, _ = one_message(jobs)
    for job_id, status in zip(ids, ("succeeded", "failed", "cancelled", "waiting"), strict=True):
        Job.objects.filter(pk=job_id).update(status=status, finished_at=timezone.now())
    told: dict[uuid.UUID, Any] = {}
    monkeypatch.setattr(bundle_apart, "hand_over", lambda *args: told.update({args[3].pk: args[5]}))
    events = task_events.TaskEvents(app, HOSTNAME, 0)
    bundle_apart.show_ended(None, app.tasks[one.name], "default", dict.fromkeys(ids, 0), events)
    assert told == {ids[0]: events, ids[1]: None, ids[2]: None}


@pytest.mark.parametrize("why", ["short limit", "rate limit", "rate limit of a bundle", "time limit"])
def test_a_worker_that_has_to_see_each_job_takes_the_message_apart(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    ids, message = one_message(jobs)
    if why == "rate limit of a bundle":
        monkeypatch.setattr(type(app.tasks[one.name]), "bundle", 100, raising=False)
    with monkeypatch.context() as in_the_parent:
        if why == "short limit":
            in_the_parent.setattr(pools, "limits_of_worker", (9.0, None))
        elif why.startswith("rate limit"):  # set by remote control, of which the child knows nothing
            in_the_parent.setattr(app.tasks[one.name], "rate_limit", "1/m", raising=False)
        elif why == "time limit":
            in_the_parent.setattr(app.tasks[one.name], "time_limit", 9.0, raising=False)
        _, pool = parent(message)
    task = app.tasks[bundles.TASK]
    task.__trace__ = None
    bundle_apart.trace(task, pool.request["id"], pool.request["args"], {}, pool.request, app)
    assert effects() == []
    assert sorted(message.headers["id"] for message in jobs.take()) == sorted(map(str, ids))


@pytest.mark.promise("I7")
def test_a_revoked_one_comes_back_to_the_worker_that_cancels_it(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation, "aside", lambda work, what: work())
    ids, message = one_message(jobs)
    worker_state.revoked.add(str(ids[1]))
    try:
        jobs.deliver(message)
        assert statuses(ids) == ["succeeded", "waiting", "succeeded", "succeeded"]
        (single,) = jobs.take()
        with pytest.raises(TaskRevokedError):
            jobs.deliver(single)
        assert statuses(ids)[1] == "cancelled"
    finally:
        worker_state.revoked.discard(str(ids[1]))
    assert "one 1" not in effects()


class Killed:
    """A pool that notes which processes it is to end."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def terminate_job(self, pid: int, signal: Any) -> None:
        self.pids.append(pid)


def test_remote_control_finds_a_job_as_long_as_its_message_runs(jobs: InProcess) -> None:
    ids, message = one_message(jobs)
    request, _ = parent(message)
    request.on_accepted(1, time.monotonic())
    part = worker_state.requests[str(ids[2])]
    assert (part.info()["id"], part.info()["name"]) == (str(ids[2]), one.name)
    request.acknowledge()
    assert not set(map(str, ids)) & set(worker_state.requests)


def test_of_a_message_that_goes_with_its_connection_nothing_stays(jobs: InProcess) -> None:
    """Celery drops one that no child has taken, and with worker_cancel_long_running_tasks_on_connection_loss ends one
    that runs. Neither is acknowledged or rejected."""
    ids, message = one_message(jobs)
    request, _ = parent(message)
    assert not set(map(str, ids)) & set(worker_state.requests)
    request.on_accepted(1, time.monotonic())
    assert set(map(str, ids)) <= set(worker_state.requests)
    pool = Killed()
    request.cancel(pool)
    assert pool.pids == [1]
    try:
        raise Terminated(15)
    except Terminated:
        request.on_failure(ExceptionInfo())
    assert not set(map(str, ids)) & set(worker_state.requests)


def accepted(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Killed]:
    """The ids and the request of a message that a child has taken, and a pool that notes whom it ends."""
    monkeypatch.setattr(requests, "aside", lambda work, what: work())
    ids, message = one_message(jobs)
    request, _ = parent(message)
    request.on_accepted(1, time.monotonic())
    return ids, request, Killed()


@pytest.mark.promise("I7")
def test_terminate_cancels_one_that_has_not_begun_and_ends_no_process(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, request, pool = accepted(jobs, monkeypatch)
    worker_state.requests[str(ids[2])].terminate(pool, 15)
    assert statuses(ids)[2] == "cancelled"
    assert pool.pids == []
    request.acknowledge()


@pytest.mark.promise("I6")
def test_terminate_of_one_that_runs_elsewhere_ends_no_process_here(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, request, pool = accepted(jobs, monkeypatch)
    Job.objects.filter(pk=ids[2]).update(sends=2)
    lifecycle.claim_committed(ids[2], 0, "default", worker="another", lease=60.0)
    worker_state.requests[str(ids[2])].terminate(pool, 15)
    assert pool.pids == []
    request.acknowledge()


@pytest.mark.promise("I7")
@pytest.mark.parametrize("sends", [1, 2], ids=["sent once", "copied by a sweeper"])
def test_terminate_ends_a_run_whose_lock_it_can_only_wait_for(second_database: str, sends: int) -> None:
    """SQLite, which has one writer; a MariaDB without SKIP LOCKED says of the row what it says of the file."""
    alias = second_database
    job = Job(task=one.name, queue="q", due_at=timezone.now(), sends=sends, payload=b"", envelope="{}")
    job.save(using=alias)
    with connections[alias].cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 100")
    run = sqlite3.connect(connections[alias].settings_dict["NAME"], isolation_level=None)
    run.execute("BEGIN IMMEDIATE")
    revocation.terminate(job.pk, alias, kill=run.close)
    assert Job.objects.using(alias).get(pk=job.pk).status == "cancelled"


@pytest.mark.promise("I6")
@pytest.mark.parametrize("left", [1, 2])
def test_a_death_is_told_on_the_row_of_the_one_that_ran(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr(requests, "aside", lambda work, what: work())
    ids, message = one_message(jobs)
    request, _ = parent(message)
    Job.objects.filter(pk__in=ids[: 3 - left]).update(status="succeeded")
    Job.objects.filter(pk=ids[3]).update(sends=2)  # sent alone, after a second
    request.time_start = time.time() - 30
    request.on_timeout(False, 31.0)
    events = list(JobEvent.objects.values_list("job_id", "kind"))
    assert events == ([(ids[2], "time limit")] if left == 1 else [])


@pytest.mark.promise("I7")
def test_a_message_that_names_no_jobs_is_refused_where_it_can_be_kept(jobs: InProcess) -> None:
    _, message = one_message(jobs)
    for body in ([["a", "b"], {}, {}], [[one.name, "default", [["no id", 0]]], {}, {}]):
        forged = jobs.through_broker(
            json.dumps(body).encode(), "application/json", "utf-8", dict(message.headers), {"delivery_mode": 2}
        )
        with pytest.raises(InvalidTaskError):
            parent(forged)
