"""When the watchdog acts, and when it must not. Here its worker and its broker are objects of the test's own; real ones
are in test_consuming.py."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import amqp
import pytest
from celery.concurrency import prefork, solo
from celery.worker import state as worker_state
from django.test import override_settings
from kombu import Queue

from reliable_jobs.clock import Now
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.worker import broker_sockets, watchdog
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

QUEUE = "reliable_jobs_tests"


#: As it is, before a rig replaces it.
asking = broker_sockets.ask_for_a_sign


class Request:
    """Something that a worker holds."""


class Pool(prefork.TaskPool):
    num_processes = 2

    def __init__(self) -> None:
        pass


class SoloPool(solo.TaskPool):
    def __init__(self) -> None:
        self.limit = 1


class Rig:
    """A watchdog with a worker that consumes and receives nothing."""

    def __init__(self) -> None:
        self.live, self.frames, self.turns = object(), 10, True
        self.ready: bool | Exception = True
        self.queues = {QUEUE: Queue(QUEUE)}
        consume_from = SimpleNamespace(values=lambda: self.queues.values())
        self.consumer = SimpleNamespace(
            app=SimpleNamespace(
                amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=consume_from)),
                conf=SimpleNamespace(worker_eta_task_limit=None),
            ),
            connection=SimpleNamespace(_connection=self.live),
            task_consumer=SimpleNamespace(channel=SimpleNamespace(connection=self.live)),
            task_buckets={},
            qos=SimpleNamespace(value=8),
            hub=None,
            call_soon=self.call_soon,
        )
        self.worker = SimpleNamespace(consumer=self.consumer, pool=Pool(), hostname="w@test")
        self.dog = watchdog.Watchdog(self.worker)
        self.dog.consuming = True
        self.shut: list[Any] = []
        self.ended: list[str] = []

    def call_soon(self, function: Any, *args: Any) -> None:
        if self.turns:
            function(*args)

    def messages_ready(self, app: Any, queues: Any, timeout: float) -> bool:
        if isinstance(self.ready, Exception):
            raise self.ready
        return self.ready and bool(list(queues))

    def frames_received(self, live: Any) -> int:
        return self.frames

    def ask_for_a_sign(self, live: Any) -> None:
        self.frames += 1

    def shut_one(self, live: Any) -> int:
        self.shut.append(live)
        return 1

    def shut_all(self) -> int:
        return self.shut_one("all")

    def end(self, text: str, alias: str, job: Job) -> None:
        self.ended.append(text)

    def run(self, seconds: int) -> Rig:
        for _ in range(seconds):
            self.dog.tick(1.0)
        return self


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    with (
        override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}),
        mock.patch.object(broker_sockets, "messages_ready", rig.messages_ready),
        mock.patch.object(broker_sockets, "frames_received", rig.frames_received),
        mock.patch.object(broker_sockets, "ask_for_a_sign", rig.ask_for_a_sign),
        mock.patch.object(broker_sockets, "shut", rig.shut_one),
        mock.patch.object(broker_sockets, "shut_all", rig.shut_all),
        mock.patch.object(rig.dog, "_end", rig.end),
    ):
        yield rig


@pytest.fixture
def waiting(rig: Rig) -> Job:
    """A job whose message went out a minute ago."""
    job_id = tasks.effect.delay("waiting").id
    Job.objects.filter(pk=job_id).update(sends=1, queue=QUEUE, due_at=Now() - datetime.timedelta(minutes=1))
    return Job.objects.get(pk=job_id)


def test_f_a_worker_that_gets_nothing_of_what_is_ready_reconnects(rig: Rig, waiting: Job) -> None:
    rig.run(30)
    assert rig.shut == ["all"]
    event = JobEvent.objects.get(job_id=waiting.pk)
    assert (event.kind, event.actor) == ("rescue", "w@test")
    assert "time 1 of 3" in event.detail


def test_f_after_three_times_the_process_ends(rig: Rig, waiting: Job) -> None:
    rig.run(130)
    assert rig.shut == ["all"] * 3
    assert rig.ended


def test_f_a_message_makes_it_start_again_from_the_first_time(rig: Rig, waiting: Job) -> None:
    for _ in range(6):
        rig.run(30)
        rig.dog.count_message()
    assert rig.shut == ["all"] * 6
    assert not rig.ended


def test_f_a_connection_that_answers_nothing_is_given_up(rig: Rig, waiting: Job) -> None:
    rig.ready = False
    with mock.patch.object(broker_sockets, "ask_for_a_sign"):
        assert rig.run(30).shut == ["all"]


def test_f_a_loop_that_does_not_turn_is_noticed_in_a_busy_worker(rig: Rig, waiting: Job) -> None:
    rig.turns, rig.ready = False, False
    held = [Request() for _ in range(4)]
    worker_state.reserved_requests.update(held)
    try:
        assert rig.run(40).shut == ["all"]
    finally:
        worker_state.reserved_requests.difference_update(held)


def test_f_a_question_that_a_reconnect_threw_away_is_asked_again(rig: Rig, waiting: Job) -> None:
    """It made the loop look stuck for ever, and the watchdog act on a worker that had come back (kombu 5.5)."""
    rig.turns = False
    rig.run(2)
    rig.turns, rig.ready = True, False
    assert rig.run(300).shut == []


def test_f1_a_channel_of_another_connection_is_noticed_in_three_seconds(rig: Rig) -> None:
    rig.consumer.connection._connection = other = object()
    assert rig.run(2).shut == []
    assert rig.run(1).shut == [other]


def test_f1_while_the_consumer_starts_its_channel_may_differ(rig: Rig) -> None:
    rig.consumer.connection._connection = object()
    rig.dog.consuming = False
    assert rig.run(10).shut == []


def test_f_closed_connections_of_the_process_are_no_hindrance(rig: Rig) -> None:
    """py-amqp connects a closed one when it is asked for its transport, and forgets its channels."""
    closed = amqp.Connection("127.0.0.1:1")
    closed.channels = None
    assert list(broker_sockets._sockets(closed)) == [None]
    asking(closed)


# --- it must not act --------------------------------------------------------------------------------------------------


def test_f_an_idle_worker_is_left_alone(rig: Rig) -> None:
    assert rig.run(300).shut == []


def test_f_messages_that_other_workers_hold_are_not_missed(rig: Rig, waiting: Job) -> None:
    """Prefetched there, or running: the row waits, the broker has nothing ready."""
    rig.ready = False
    assert rig.run(300).shut == []


@pytest.mark.parametrize("sent", [{"sends": 0}, {"due_at": Now()}, {"queue": "another"}, {"status": "succeeded"}])
def test_f_rows_that_nobody_waits_for_here_do_not_count(rig: Rig, waiting: Job, sent: dict[str, Any]) -> None:
    Job.objects.update(**sent)
    assert rig.run(30).shut == []


def test_f_a_queue_paused_by_cancel_consumer_is_not_missed(rig: Rig, waiting: Job) -> None:
    rig.queues.clear()
    assert rig.run(300).shut == []


def test_f_a_queue_with_another_single_active_consumer_is_not_missed(rig: Rig, waiting: Job) -> None:
    rig.queues[QUEUE] = Queue(QUEUE, queue_arguments={"x-single-active-consumer": True})
    assert rig.run(300).shut == []


def test_f_a_broker_that_is_away_is_waited_for(rig: Rig, waiting: Job) -> None:
    rig.ready = ConnectionRefusedError()
    assert rig.run(300).shut == []
    rig.dog.consuming = False
    assert rig.run(300).shut == []
    rig.ready = True
    rig.turns = False
    assert rig.run(38).shut == [], "Celery pauses up to 30 s between two attempts"
    assert rig.run(10).shut == ["all"]


@pytest.mark.parametrize("flag", ["should_stop", "should_terminate"])
def test_f_a_shutdown_is_not_disturbed(rig: Rig, waiting: Job, flag: str) -> None:
    with mock.patch.object(worker_state, flag, 0):
        assert rig.run(300).shut == []
    with mock.patch.object(worker_state, flag, False):
        assert rig.run(30).shut == ["all"]


def test_f_a_busy_worker_is_left_alone(rig: Rig, waiting: Job) -> None:
    held = [Request(), Request()]
    worker_state.reserved_requests.update(held)
    try:
        assert rig.run(300).shut == []
        worker_state.reserved_requests.discard(held[0])
        assert rig.run(30).shut == ["all"], "one of two slots is free"
    finally:
        worker_state.reserved_requests.difference_update(held)


def test_f_a_busy_solo_worker_is_left_alone_though_its_loop_stands_still(rig: Rig, waiting: Job) -> None:
    rig.worker.pool, rig.turns = SoloPool(), False
    held = Request()
    worker_state.reserved_requests.add(held)
    try:
        assert rig.run(300).shut == []
    finally:
        worker_state.reserved_requests.discard(held)


def test_f_messages_that_wait_for_a_rate_limit_take_room(rig: Rig, waiting: Job) -> None:
    rig.consumer.task_buckets = {"a": SimpleNamespace(contents=[1, 2]), "b": None}
    assert rig.run(300).shut == []


def test_f_celery_5_5_has_no_limit_of_etas(rig: Rig, waiting: Job) -> None:
    del rig.consumer.app.conf.worker_eta_task_limit
    assert rig.run(30).shut == ["all"]


def test_f_messages_waiting_for_their_eta_count_in_a_limited_window(rig: Rig, waiting: Job) -> None:
    rig.consumer.app.conf.worker_eta_task_limit = 8
    assert rig.run(300).shut == []


def test_f_time_in_which_the_whole_process_was_stopped_does_not_count(rig: Rig, waiting: Job) -> None:
    clock = iter([0.0, *(float(second) for second in range(1, 6)), 100.0, 101.0])
    stops = iter([False] * 7 + [True])
    with (
        mock.patch.object(watchdog.time, "monotonic", side_effect=clock),
        mock.patch.object(rig.dog._stop, "wait", side_effect=stops),
        mock.patch.object(watchdog, "close_connections"),
    ):
        rig.dog.run()
    assert rig.dog._quiet < 15
