"""Messages out, confirmed, within a time budget; the breaker; connections and forks. On a real RabbitMQ."""

from __future__ import annotations

import math
import os
import select
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from django.test import override_settings
from kombu import Connection, Exchange, Queue
from kombu.transport import memory

from reliable_jobs.dispatch import publisher as module
from reliable_jobs.dispatch.amqp_pipeline import time_left
from reliable_jobs.dispatch.answers import BrokerTimeout, Confirms
from reliable_jobs.dispatch.connection import Link
from reliable_jobs.dispatch.publisher import MAX_IDLE, Publisher, publisher
from reliable_jobs.message.row_to_message import Outgoing
from reliable_jobs.models import Job
from reliable_jobs.sweep import sweeper
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import Stack, wait_until
from tests.support.rows import past
from tests.testapp import tasks

rows = inprocess.rows
servers = pytest.mark.servers


def message(queue: str, *, exchange: str = "", headers: dict[str, Any] | None = None, body: bytes = b"[]") -> Outgoing:
    job_id = uuid.uuid4()
    return Outgoing(
        id=job_id,
        queue=queue if not exchange else "",
        exchange=exchange,
        routing_key=queue,
        body=body,
        content_type="application/json",
        content_encoding="utf-8",
        headers={"id": str(job_id), **(headers or {})},
        properties={"delivery_mode": 2, "message_id": str(job_id)},
    )


@pytest.fixture
def mine(stack: Stack, idle_queue: str) -> Iterator[Publisher]:
    """A publisher of this test alone."""
    fresh = Publisher(app)
    yield fresh
    fresh.close()
    # It would connect in the middle of another test.
    wait_until(lambda: fresh._probe is None or not fresh._probe.is_alive(), "the breaker's probe has ended", 30)


# --- confirms -------------------------------------------------------------------------------------------------------


@servers
@pytest.mark.parametrize("count", [0, 1, 5, 1200])
def test_every_message_is_confirmed_and_arrives_once(mine: Publisher, stack: Stack, count: int) -> None:
    sent = [message(stack.queue) for _ in range(count)]
    confirms = mine.publish(sent, timeout=20)
    assert confirms.error is None
    assert confirms.confirmed == {one.id for one in sent}
    assert [one.headers["id"] for one in stack.take_messages()] == [str(one.id) for one in sent]


@servers
def test_a_queue_that_is_missing_is_declared(mine: Publisher, stack: Stack) -> None:
    stack.delete_queue()
    assert mine.publish([message(stack.queue)]).confirmed
    assert stack.depth() == 1


@servers
@pytest.mark.promise("I2")
def test_a_queue_deleted_behind_a_kept_connection_is_declared_anew(mine: Publisher, stack: Stack) -> None:
    assert mine.publish([message(stack.queue)]).confirmed
    stack.delete_queue()
    again = message(stack.queue)
    assert mine.publish([again], timeout=5).confirmed == {again.id}
    assert stack.depth() == 1


@servers
@pytest.mark.promise("I7")
def test_what_cannot_be_routed_is_returned_though_the_broker_acks_it(mine: Publisher, stack: Stack) -> None:
    good = message(stack.queue)
    lost = message("no.such.queue.anywhere", exchange="amq.direct")
    confirms = mine.publish([lost, good], timeout=5)
    assert confirms.confirmed == {good.id}
    assert "unroutable" in confirms.returned[lost.id]
    assert "no.such.queue.anywhere" in confirms.returned[lost.id]
    assert not mine.breaker_open


@servers
@pytest.mark.promise("I7")
def test_an_exchange_that_does_not_exist_costs_only_its_own_message(mine: Publisher, stack: Stack) -> None:
    good = [message(stack.queue) for _ in range(4)]
    bad = message(stack.queue, exchange="no-such-exchange")
    confirms = mine.publish([*good[:2], bad, *good[2:]], timeout=10)
    assert {one.id for one in good} <= confirms.confirmed
    assert "no-such-exchange" in confirms.returned[bad.id]
    assert bad.id not in confirms.confirmed
    assert not mine.breaker_open


@servers
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_message_that_can_not_be_encoded_costs_only_itself(mine: Publisher, stack: Stack, position: int) -> None:
    batch = [message(stack.queue) for _ in range(2)]
    batch.insert(position, message(stack.queue, headers={"odd": object()}))
    confirms = mine.publish(batch, timeout=5)
    assert confirms.confirmed == {one.id for n, one in enumerate(batch) if n != position}
    assert "can't be encoded" in confirms.returned[batch[position].id]


@servers
def test_a_queue_that_may_not_be_declared_is_named_as_the_cause(mine: Publisher, stack: Stack) -> None:
    bad, good = message("amq.forbidden"), message(stack.queue)
    confirms = mine.publish([bad, good], timeout=5)
    assert confirms.confirmed == {good.id}
    assert "the broker refuses its queue" in confirms.returned[bad.id]
    assert "ACCESS_REFUSED" in confirms.returned[bad.id]


@servers
def test_a_queue_that_exists_with_other_arguments_will_do(mine: Publisher, stack: Stack) -> None:
    name = f"{stack.queue}_other"
    with stack._channel() as channel:
        Queue(name, Exchange(""), name, queue_arguments={"x-max-priority": 5}, channel=channel).declare()
        try:
            assert mine.publish([message(name)], timeout=5).confirmed
            assert channel.queue_declare(name, passive=True).message_count == 1
        finally:
            channel.queue_delete(name)


@servers
@pytest.mark.promise("I5")
def test_a_full_queue_that_rejects_is_a_nack_and_no_confirm(mine: Publisher, stack: Stack) -> None:
    name = f"{stack.queue}_full"
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with stack._channel() as channel:
        Queue(name, Exchange(""), name, queue_arguments=arguments, channel=channel).declare()
        try:
            sent = [message(name) for _ in range(4)]
            confirms = mine.publish(sent, timeout=5)
            assert len(confirms.confirmed) <= 2
            assert confirms.nacked - confirms.confirmed
            assert not confirms.nacked & confirms.confirmed
        finally:
            channel.queue_delete(name)


# --- connections ----------------------------------------------------------------------------------------------------


@servers
def test_a_connection_is_kept_and_used_again(mine: Publisher, stack: Stack, broker_proxy: Any) -> None:
    with stack.through(broker_proxy.url(stack.broker_url)):
        for _ in range(5):
            assert mine.publish([message(stack.queue)]).confirmed
        assert broker_proxy.accepted == 1


@servers
@pytest.mark.promise("I5")
def test_a_dead_kept_connection_costs_a_second_attempt_and_no_message(
    mine: Publisher, stack: Stack, broker_proxy: Any
) -> None:
    with stack.through(broker_proxy.url(stack.broker_url)):
        assert mine.publish([message(stack.queue)], timeout=5).confirmed
        broker_proxy.cut()
        confirms = mine.publish([message(stack.queue)], timeout=5)
        assert (len(confirms.confirmed), confirms.error) == (1, None)
        assert not mine.breaker_open
    assert stack.depth() == 2


@servers
def test_threads_have_connections_of_their_own_and_few_are_kept(mine: Publisher, stack: Stack) -> None:
    confirmed: list[int] = []
    start = threading.Barrier(MAX_IDLE + 4)

    def run() -> None:
        start.wait()
        confirmed.append(len(mine.publish([message(stack.queue) for _ in range(20)], timeout=20).confirmed))

    threads = [threading.Thread(target=run) for _ in range(MAX_IDLE + 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert confirmed == [20] * (MAX_IDLE + 4)
    assert 1 <= len(mine._idle) <= MAX_IDLE


@servers
def test_after_a_fork_the_child_uses_connections_of_its_own(mine: Publisher, stack: Stack) -> None:
    assert mine.publish([message(stack.queue)]).confirmed
    (parents,) = mine._idle
    mine._open = True  # the parent's breaker is not the child's either
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        status = 1
        try:
            confirms = mine.publish([message(stack.queue)], timeout=10)
            own = parents not in mine._idle and not mine._open
            parents.drop()  # must not end the parent's
            os.write(writer, b"ok" if confirms.confirmed and own else b"no")
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    os.waitpid(pid, 0)
    assert os.read(reader, 2) == b"ok"
    os.close(reader)
    mine._open = False
    assert mine.publish([message(stack.queue)]).confirmed
    assert mine._idle == [parents], "the parent's connection lives on"
    assert stack.depth() == 3


@servers
def test_close_lets_go_of_what_is_idle(mine: Publisher, stack: Stack, broker_proxy: Any) -> None:
    with stack.through(broker_proxy.url(stack.broker_url)):
        mine.publish([message(stack.queue)])
        wait_until(lambda: broker_proxy.links == 1, "one connection is kept", 5)
        mine.close()
        wait_until(lambda: broker_proxy.links == 0, "the connection is closed", 5)


@servers
def test_one_publisher_per_app_and_process(stack: Stack) -> None:
    assert publisher(app) is publisher(app) is publisher()
    other = Celery("other", set_as_current=False)
    assert publisher(other) is not publisher(app)
    app.set_current()


# --- time -----------------------------------------------------------------------------------------------------------


def timed(mine: Publisher, queue: str, budget: float) -> tuple[Confirms, float]:
    """What came of one message, and the seconds that it took."""
    started = time.monotonic()
    confirms = mine.publish([message(queue)], timeout=budget)
    return confirms, time.monotonic() - started


@servers
@pytest.mark.promise("I9")
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
def test_a_blackhole_costs_no_more_than_the_budget(
    mine: Publisher, stack: Stack, broker_proxy: Any, kept: bool
) -> None:
    with stack.through(broker_proxy.url(stack.broker_url)):
        if kept:
            assert mine.publish([message(stack.queue)], timeout=5).confirmed
        broker_proxy.blackhole(True)
        confirms, took = timed(mine, stack.queue, 0.6)
        broker_proxy.blackhole(False)
        assert not confirms.confirmed
        assert confirms.error is not None
        assert took < 3.0
        wait_until(lambda: not mine.breaker_open, "the breaker closes again")


@servers
@pytest.mark.promise("I9")
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection, new queue"])
def test_a_slow_network_costs_no_more_than_the_budget(
    mine: Publisher, stack: Stack, broker_proxy: Any, kept: bool
) -> None:
    """Found by the chaos campaign of seed 36: 3.1 s, because each read of the handshake came in time."""
    other = f"{stack.queue}_slow"
    with stack.through(broker_proxy.url(stack.broker_url)):
        if kept:
            assert mine.publish([message(stack.queue)], timeout=5).confirmed
        broker_proxy.latency = 0.2
        confirms, took = timed(mine, other, 0.8)
        broker_proxy.latency = 0.0
        assert not confirms.confirmed
        assert isinstance(confirms.error, BrokerTimeout)
        assert took < 2.5  # without a budget: 3.1
        wait_until(lambda: not mine.breaker_open, "the breaker closes again")
        mine.close()
        wait_until(lambda: broker_proxy.links == 0, "what came too late is let go")
    stack.delete_queue(other)


@pytest.mark.promise("I9")
def test_a_broker_that_refuses_fails_at_once(db: None) -> None:
    with inprocess.broker("amqp://127.0.0.1:1//", "nowhere"):
        mine = Publisher(app)
        started = time.monotonic()
        confirms = mine.publish([message("nowhere")], timeout=5)
        assert time.monotonic() - started < 3
        assert not confirms.confirmed
        assert isinstance(confirms.error, Exception)
        assert mine.breaker_open
        assert not mine.reachable(timeout=0.5)


@servers
def test_a_budget_of_nothing_sends_nothing(mine: Publisher, stack: Stack) -> None:
    confirms = mine.publish([message(stack.queue)], timeout=0)
    assert not confirms.confirmed
    assert confirms.error is not None


# --- the breaker ----------------------------------------------------------------------------------------------------


@servers
@pytest.mark.promise("I8")
def test_an_outage_that_is_over_before_the_first_probe_is_remembered(mine: Publisher) -> None:
    mine._trip(OSError("gone for a moment"))
    wait_until(lambda: not mine.breaker_open, "a probe has closed the breaker")
    assert mine.back_for < 45


@servers
@pytest.mark.promise("I9")
def test_the_breaker_opens_at_the_first_failure_and_a_probe_closes_it(
    mine: Publisher, stack: Stack, broker_proxy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with stack.through(broker_proxy.url(stack.broker_url)):
        assert mine.publish([message(stack.queue)], timeout=5).confirmed
        broker_proxy.refuse(True)
        broker_proxy.cut()
        assert not mine.publish([message(stack.queue)], timeout=1).confirmed
        assert mine.breaker_open
        assert "can't be reached" in caplog.text
        assert "guest:guest" not in caplog.text, "no password in the log"
        probe = mine._probe
        assert probe is not None
        assert probe.daemon
        assert not mine.publish([message(stack.queue)], timeout=1).confirmed
        assert mine._probe is probe, "one probe at a time"
        assert caplog.text.count("can't be reached") == 1, "said once"
        broker_proxy.refuse(False)
        # The probe closes the breaker first and says so afterwards.
        wait_until(lambda: "Broker is back" in caplog.text, "a probe has closed the breaker")
        assert not mine.breaker_open
        assert mine.back_for < 45, "an outage that only a publish saw"
        assert mine.publish([message(stack.queue)], timeout=5).confirmed


@servers
def test_a_message_that_is_returned_does_not_open_the_breaker(mine: Publisher, stack: Stack) -> None:
    mine.publish([message("nowhere.at.all", exchange="amq.direct")], timeout=5)
    assert not mine.breaker_open


@servers
def test_a_probe_leaves_nothing_in_the_broker(mine: Publisher, stack: Stack) -> None:
    for _ in range(3):
        assert mine.reachable()
    assert stack.depth() == 0
    assert len(mine._idle) == 1, "it uses the connection that it kept"


@servers
def test_a_broker_is_trusted_from_an_answer_to_the_next_failure(
    mine: Publisher, stack: Stack, broker_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRUSTED", 3600.0)
    assert mine.publish([]).error is None
    assert not mine.answered_lately, "nobody was asked"
    with stack.through(broker_proxy.url(stack.broker_url)):
        assert mine.publish([message(stack.queue)], timeout=5).confirmed
        assert mine.answered_lately
        broker_proxy.refuse(True)
        broker_proxy.cut()
        for _ in range(2):  # the second one finds the breaker open
            mine._answered_at = time.monotonic()
            assert not mine.publish([message(stack.queue)], timeout=1).confirmed
            assert not mine.answered_lately
    assert mine.publish([message(stack.queue)], timeout=5).confirmed
    monkeypatch.setattr(module, "TRUSTED", 0.0)
    assert not mine.answered_lately, "a while ago is not now"


@servers
def test_depths_are_asked_for_from_the_moment_that_the_broker_is_back(
    mine: Publisher, stack: Stack, broker_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mine, "_start_probe", lambda: None)
    with stack.through(broker_proxy.url(stack.broker_url)):
        broker_proxy.refuse(True)
        assert not mine.publish([message(stack.queue)], timeout=1).confirmed
        assert not mine.depths([stack.queue])
        broker_proxy.refuse(False)
        assert mine.reachable()
        assert mine._open, "the breaker is its probe's business"
        assert stack.queue in mine.depths([stack.queue])


@servers
@pytest.mark.promise("I8")
@pytest.mark.parametrize("sends", [0, 1], ids=["due", "overdue"])
def test_a_broker_that_goes_just_after_it_answered_costs_nothing(
    mine: Publisher, stack: Stack, broker_proxy: Any, monkeypatch: pytest.MonkeyPatch, sends: int
) -> None:
    monkeypatch.setattr(module, "TRUSTED", 3600.0)
    monkeypatch.setattr(sweeper, "publisher", lambda app: mine)
    with stack.through(broker_proxy.url(stack.broker_url)), override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        assert mine.publish([message(stack.queue)], timeout=5).confirmed
        with Connection(stack.broker_url) as connection:
            connection.default_channel.queue_purge(stack.queue)
        job = tasks.effect.delay("due")
        if sends:
            Job.objects.update(sends=sends, due_at=past(100), check_at=past())
        before = Job.objects.get(pk=job.id)
        broker_proxy.refuse(True)
        broker_proxy.cut()
        report = sweeper.sweep(app)
        assert (report.published, report.republished) == (0, 0)
        after = Job.objects.get(pk=job.id)
        assert after.sends == sends
        assert not sends or after.check_at == before.check_at
    assert mine.reachable()
    report = sweeper.sweep(app)
    assert report.published + report.republished == 1, "at once"


@servers
def test_a_probe_over_a_dead_kept_connection_takes_another(mine: Publisher, stack: Stack, broker_proxy: Any) -> None:
    with stack.through(broker_proxy.url(stack.broker_url)):
        assert mine.reachable()
        broker_proxy.cut()
        assert mine.reachable()
        assert mine.back_for == math.inf, "a kept connection that ended is no outage"
        broker_proxy.refuse(True)
        broker_proxy.cut()
        assert not mine.reachable(timeout=0.5)
        assert mine.back_for == math.inf, "it is not back"
        broker_proxy.refuse(False)
        assert mine.reachable()
        assert mine.back_for < 45


@servers
def test_a_probe_of_a_blackhole_says_no_in_its_time(mine: Publisher, stack: Stack, broker_proxy: Any) -> None:
    with stack.through(broker_proxy.url(stack.broker_url)):
        broker_proxy.blackhole(True)
        started = time.monotonic()
        assert not mine.reachable(timeout=0.5)
        assert time.monotonic() - started < 5


def test_pauses_between_probes_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Publisher(app)
    answers = [False] * 9 + [True]
    pauses: list[float] = []
    monkeypatch.setattr(mine, "reachable", lambda timeout: answers.pop(0))
    mine._open = True
    mine._probe_until_back(sleep=pauses.append)
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 15, 15]
    assert not mine.breaker_open


# --- the link -------------------------------------------------------------------------------------------------------


@servers
def test_a_late_ack_of_an_earlier_batch_confirms_nothing_of_the_next(stack: Stack, idle_queue: str) -> None:
    """A link that failed is never used again; should it be, its numbers must not be taken for the next batch's."""
    link = Link(app, timeout=5)
    with pytest.raises(BrokerTimeout):
        time_left(time.monotonic() - 1)
    first = link.publish([message(stack.queue)], time.monotonic() + 5)
    second = link.publish([message(stack.queue)], time.monotonic() + 5)
    assert first.confirmed.isdisjoint(second.confirmed)
    assert len(second.confirmed) == 1
    link.close()


@servers
@pytest.mark.promise("I9")
def test_a_confirm_that_has_arrived_counts_after_a_stall(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by stalls: a process without a processor for a second took its broker for dead."""
    link = Link(app, timeout=5)
    write = link.pipeline._write

    def then_stop(frames: bytearray, deadline: float) -> None:
        write(frames, deadline)
        answered = lambda: bool(select.select([link.raw.sock], [], [], 0)[0])  # noqa: E731
        wait_until(lambda: time.monotonic() > deadline and answered(), "the time is over, and the answer is there")

    monkeypatch.setattr(link.pipeline, "_write", then_stop)
    one = message(stack.queue)
    confirms = link.publish([one], time.monotonic() + 0.5)
    assert (confirms.confirmed, confirms.error) == ({one.id}, None)
    link.close()


# --- brokers without confirms ---------------------------------------------------------------------------------------


def test_on_another_transport_a_publish_that_did_not_raise_counts(rows: inprocess.InProcess) -> None:
    mine = Publisher(app)
    sent = [message(rows.queue) for _ in range(3)]
    assert mine.publish(sent).confirmed == {one.id for one in sent}
    assert [one.headers["id"] for one in rows.take()] == [str(one.id) for one in sent]
    assert mine.reachable()
    mine.close()


def test_on_another_transport_the_budget_holds_between_messages(rows: inprocess.InProcess) -> None:
    mine = Publisher(app)
    confirms = mine.publish([message(rows.queue)], timeout=0)
    assert isinstance(confirms.error, BrokerTimeout)
    assert not confirms.confirmed
    wait_until(lambda: not mine.breaker_open, "the breaker closes again")
    mine.close()


class _Sqs(memory.Transport):
    """What a link sees of kombu's SQS transport, which wants boto3 installed."""

    driver_type = driver_name = "sqs"


@pytest.mark.parametrize(
    ("theirs", "retries", "connect_timeout"),
    [
        ({}, {"total_max_attempts": 1}, 0.4),
        ({"retries": {"max_attempts": 2}, "connect_timeout": 5}, {"max_attempts": 2}, 5),
    ],
)
@pytest.mark.promise("I9")
def test_one_call_to_sqs_has_the_publishs_budget_and_no_retries(
    theirs: dict[str, Any], retries: dict[str, Any], connect_timeout: float
) -> None:
    with Celery(set_as_current=False, broker_transport=f"{__name__}:_Sqs") as sqs:
        sqs.conf.broker_transport_options = {"client-config": theirs, "region": "eu-central-1"}
        link = Link(sqs, timeout=0.8)
        # Where kombu's SQS channel looks when it makes boto3's client.
        options = link.channel.connection.client.transport_options
        link.close()
    assert options["region"] == "eu-central-1"
    assert options["client-config"] == {"connect_timeout": connect_timeout, "read_timeout": 0.4, "retries": retries}
