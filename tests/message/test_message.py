"""A row becomes the message that Celery would have sent, and its arguments again; no broker is asked."""

from __future__ import annotations

import copy
import datetime
import json
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Task, chain, group, shared_task
from celery.contrib.django.task import DjangoTask
from django.db.models import DurationField, ExpressionWrapper, F
from django.test import override_settings

from reliable_jobs import ReliableTask
from reliable_jobs.clock import Now
from reliable_jobs.enqueue.render import Capture
from reliable_jobs.errors import InvalidOption
from reliable_jobs.message.decode import PLAIN_DATA, NotDecoded, arguments, headers_of, same_call
from reliable_jobs.message.row_to_message import HEADER, Rendered, outgoing, rerouted
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.message.rendered import echo, login, row_of
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks

rows = inprocess.rows
jobs = inprocess.jobs


def render(task: Any = echo, args: Any = (), kwargs: Any = None, **options: Any) -> Rendered:
    """What Celery's own apply_async makes of a call, caught."""
    capture = Capture()
    Task.apply_async(task._get_current_object(), args, kwargs or {}, producer=capture, **options)
    assert capture.rendered is not None
    return capture.rendered


# --- no broker --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_broker(db: None) -> Iterator[None]:
    """The configured broker is a port on which nobody listens, and dispatch is the sweeper's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        inprocess.broker(f"amqp://127.0.0.1:{port}//", "nowhere"),
        override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}),
    ):
        yield


@pytest.mark.parametrize(
    ("call", "count"),
    [
        (lambda: echo.delay(1), 1),
        (lambda: echo.apply_async((1,), countdown=10), 1),
        (lambda: echo.apply_async((1,), expires=10, priority=3, queue="other"), 1),
        (lambda: chain(echo.s(1), echo.s(2), echo.s(3)).apply_async(), 1),
        (lambda: (echo.s(1) | echo.s(2)).delay(), 1),
        (lambda: group(echo.s(n) for n in range(3)).apply_async(), 3),
        (lambda: echo.s(1).apply_async(link=echo.s(2), link_error=echo.s(3)), 1),
        (lambda: echo.s(1).set(queue="other").delay(), 1),
    ],
    ids=["delay", "countdown", "options", "chain", "pipe", "group", "links", "set"],
)
def test_a_call_becomes_rows_without_a_broker(no_broker: None, call: Any, count: int) -> None:
    call()
    assert Job.objects.count() == count


@pytest.mark.parametrize(
    ("canvas", "count"),
    [
        (lambda: tasks.add.starmap([(1, 2)]), 1),
        (lambda: echo.map([1, 2]), 1),
        (lambda: tasks.add.chunks([(1, 2), (3, 4)], 1), 2),
    ],
    ids=["starmap", "map", "chunks"],
)
def test_a_call_over_a_list_becomes_rows_without_a_broker(no_broker: None, canvas: Any, count: int) -> None:
    canvas().apply_async()
    assert Job.objects.count() == count


# --- the row and the message ------------------------------------------------------------------------------------------


def test_headers_of_the_caller_travel(rows: InProcess) -> None:
    row = row_of(echo.apply_async((), headers={"tenant": "ä", "n": 5}))
    assert {"tenant": "ä", "n": 5}.items() <= outgoing(row, "default").headers.items()


def test_the_pointer_is_added_to_the_message_and_not_to_the_row(rows: InProcess) -> None:
    row = row_of(echo.delay())
    row.content_version, row.sends, row.requeues = 3, 2, 1
    assert HEADER not in headers_of(row)
    assert outgoing(row, "other").headers[HEADER] == {"content_version": 3, "using": "other", "send": 2, "requeues": 1}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"headers": {"x-own": 1}, "shadow": "alias", "ignore_result": True},
        {"time_limit": 5, "soft_time_limit": 4, "group_id": "g", "root_id": str(uuid.uuid4()), "retries": 2},
        {"ignore_result": 0, "replaced_task_nesting": False},
    ],
    ids=["plain", "shown differently", "of a group", "equal but not the same"],
)
def test_the_message_is_the_one_that_celery_rendered(rows: InProcess, options: dict[str, Any]) -> None:
    """What the row leaves out (USUAL_HEADERS) is there again in the message, key by key and type by type."""
    seen: dict[str, Any] = {}

    class Recorder(Capture):
        def publish(self, body: Any, **sent: Any) -> None:
            seen.update(copy.deepcopy(sent))

    row = row_of(echo.apply_async((1,), {}, **options))
    recorder = Recorder()
    DjangoTask.apply_async(echo, (1,), {}, str(row.pk), recorder, **options)
    headers = outgoing(row, "default").headers
    del headers[HEADER]
    assert {k: (v, type(v)) for k, v in headers.items()} == {k: (v, type(v)) for k, v in seen["headers"].items()}
    assert set(json.loads(row.envelope)["headers"]).isdisjoint({"lang", "id", "task", "stamps"})


def test_the_message_carries_no_time(rows: InProcess) -> None:
    eta = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)
    for options in ({"countdown": 60, "expires": 120}, {"eta": eta, "expires": eta}):
        message = outgoing(row_of(echo.apply_async((), **options)), "default")
        assert (message.headers["eta"], message.headers["expires"]) == (None, None)
        assert "expiration" not in message.properties


def test_the_message_is_persistent_and_known_by_its_jobs_id(rows: InProcess) -> None:
    result = echo.apply_async((), priority=7)
    message = outgoing(row_of(result), "default")
    assert message.id == uuid.UUID(result.id)
    assert message.properties["message_id"] == message.properties["correlation_id"] == result.id
    assert (message.properties["delivery_mode"], message.properties["priority"]) == (2, 7)


@pytest.mark.parametrize(("given", "sent"), [(1, 1), ("transient", 1), (2, 2), ("persistent", 2)])
def test_a_delivery_mode_that_was_asked_for_is_kept(rows: InProcess, given: Any, sent: int) -> None:
    row = row_of(echo.apply_async((), delivery_mode=given))
    assert outgoing(row, "default").properties["delivery_mode"] == sent


def test_queue_exchange_and_routing_key_are_celerys(rows: InProcess) -> None:
    row = row_of(echo.apply_async((), queue="other"))
    message = outgoing(row, "default")
    assert (row.queue, message.exchange, message.routing_key) == ("other", "", "other")


def test_a_task_route_is_followed(rows: InProcess) -> None:
    before = app.conf.task_routes
    app.conf.task_routes = {"test_message.*": {"queue": "routed", "priority": 4}}
    app.__dict__.pop("amqp", None)
    try:
        row = row_of(echo.delay())
    finally:
        app.conf.task_routes = before
        app.__dict__.pop("amqp", None)
    assert (row.queue, row.priority) == ("routed", 4)


def test_a_job_sent_elsewhere_goes_through_the_default_exchange() -> None:
    envelope = json.loads(rerouted(json.dumps({"exchange": "e", "routing_key": "r", "headers": {"a": 1}}), "q"))
    assert envelope == {"exchange": "", "routing_key": "q", "headers": {"a": 1}}


@pytest.mark.parametrize("envelope", ["", "no json", "[]", "{}", '{"headers": 5}', "null"])
def test_an_envelope_that_can_not_be_read_has_no_headers(envelope: str) -> None:
    assert headers_of(Job(envelope=envelope)) == {}


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "envelope"),
    [
        (b"", "application/json", "utf-8", "{}"),
        (b"\xff", "application/json", "utf-8", "{}"),
        (b"[]", "application/json", "utf-8", "{}"),
        (b"5", "application/json", "utf-8", "{}"),
        (b'["ab", 5]', "application/json", "utf-8", "{}"),
        (b"[[], {}]", "application/x-unknown", "utf-8", "{}"),
        (b"[[], {}]", "application/json", "utf-8", '{"headers": {"compression": "application/x-gzip"}}'),
        (b"[[], {}]", "application/json", "utf-8", '{"headers": {"compression": "no such"}}'),
    ],
)
def test_a_body_that_can_not_be_decoded_is_a_value_error(
    body: bytes, content_type: str, encoding: str, envelope: str
) -> None:
    row = Job(payload=body, content_type=content_type, content_encoding=encoding, envelope=envelope)
    with pytest.raises(ValueError, match="undecodable payload"):
        arguments(row, trusted=[content_type])
    if content_type not in PLAIN_DATA:
        with pytest.raises(NotDecoded):
            arguments(row)


def test_the_same_call_is_known_though_its_bytes_differ(rows: InProcess) -> None:
    row = row_of(echo.apply_async((1,), {"a": 1, "b": 2}))
    assert same_call(row, render(args=(1,), kwargs={"b": 2, "a": 1}))
    assert same_call(row, render(args=(1,), kwargs={"a": 1, "b": 2}, link=echo.s()))
    assert not same_call(row, render(args=(1,), kwargs={"a": 1, "b": 3}))
    assert not same_call(row, render(args=(2,), kwargs={"a": 1, "b": 2}))


def test_the_same_call_is_known_though_it_is_compressed(rows: InProcess) -> None:
    row = row_of(echo.apply_async((1,), {"a": 1, "b": 2}, compression="zlib"))
    assert same_call(row, render(args=(1,), kwargs={"a": 1, "b": 2}, compression="zlib"))
    assert not same_call(row, render(args=(1,), kwargs={"a": 1, "b": 3}, compression="zlib"))


def test_another_task_is_another_call(rows: InProcess) -> None:
    row = row_of(echo.delay())
    assert not same_call(row, render(login, ("u", "p")))


# --- USE_TZ = False (A8) ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
@pytest.mark.parametrize("aware", [True, False])
def test_a8_without_use_tz_times_are_what_they_say(jobs: InProcess, zone: str, aware: bool) -> None:
    def at(seconds: float) -> datetime.datetime:
        moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
        return moment if aware else moment.replace(tzinfo=None)

    with override_settings(USE_TZ=False, TIME_ZONE=zone):
        later = tasks.effect.apply_async(("later",), eta=at(3600), expires=at(7200))
        past = tasks.effect.apply_async(("past",), eta=at(-60), expires=at(60))
        expired = tasks.effect.apply_async(("expired",), expires=at(-60))
        again = later_again.delay(at(3600).isoformat())
        jobs.work()
        jobs.sweep()
        jobs.work()
        row = jobs.row(later)
        assert (row.status, jobs.row(past).status, jobs.row(expired).status) == ("waiting", "succeeded", "expired")
        assert abs((row.expires_at - row.due_at).total_seconds() - 3600) < 30
        for waits in (row, jobs.row(again)):
            left = Job.objects.annotate(left=ExpressionWrapper(F("due_at") - Now(), DurationField())).get(pk=waits.pk)
            assert 3500 < left.left.total_seconds() < 3700, waits


@shared_task(base=ReliableTask, name="test_message.later_again", bind=True)
def later_again(self: Any, at: str) -> None:
    raise self.retry(eta=datetime.datetime.fromisoformat(at), expires=datetime.datetime.fromisoformat(at))


def test_a_message_of_the_first_protocol_is_refused(rows: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(echo.app.conf, "task_protocol", 1)
    monkeypatch.delitem(vars(echo.app.amqp), "create_task_message", raising=False)
    with pytest.raises(InvalidOption, match="task_protocol"):
        echo.apply_async((), shadow="other")
    assert not Job.objects.exists()
    monkeypatch.delitem(vars(echo.app.amqp), "create_task_message", raising=False)
