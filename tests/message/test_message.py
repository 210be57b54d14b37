"""Celery renders the whole message into a Capture and never touches a broker."""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import json
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Task, chain, group, shared_task, signals
from celery.contrib.django.task import DjangoTask
from django.db.models import DurationField, ExpressionWrapper, F
from django.test import override_settings

from reliable_jobs import ReliableTask
from reliable_jobs.clock import Now
from reliable_jobs.enqueue.render import Capture
from reliable_jobs.errors import InvalidOption, JobTooLarge, UnserialisableArguments
from reliable_jobs.message.decode import PLAIN_DATA, NotDecoded, arguments, headers_of, same_call
from reliable_jobs.message.row_to_message import HEADER, Rendered, outgoing, rerouted
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

rows = inprocess.rows
jobs = inprocess.jobs


@shared_task(base=ReliableTask, name="test_message.echo")
def echo(*args: Any, **kwargs: Any) -> None:
    return None


@shared_task(base=ReliableTask, name="test_message.login", sensitive=("password",))
def login(user: str, password: str, **more: str) -> None:
    return None


@shared_task(base=ReliableTask, name="test_message.all_secret", sensitive=True)
def all_secret(*args: str, **kwargs: str) -> None:
    return None


def render(task: Any = echo, args: Any = (), kwargs: Any = None, **options: Any) -> Rendered:
    """What Celery's own apply_async makes of a call, caught."""
    capture = Capture()
    Task.apply_async(task._get_current_object(), args, kwargs or {}, producer=capture, **options)
    assert capture.rendered is not None
    return capture.rendered


def row_of(result: Any) -> Job:
    return Job.objects.get(pk=result.id)


# --- no broker ------------------------------------------------------------------------------------------------------


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


# --- what Celery asks of a producer ---------------------------------------------------------------------------------


class Watched:
    """A producer that notes what is asked of it."""

    def __init__(self, capture: Any, asked: set[str]) -> None:
        object.__setattr__(self, "_of", (capture, asked))

    def __getattr__(self, name: str) -> Any:
        capture, asked = object.__getattribute__(self, "_of")
        asked.add(name)
        return getattr(capture, name)


@pytest.mark.parametrize("event", [False, True])
def test_celery_asks_no_more_of_a_producer_than_publish_and_connection(event: bool) -> None:
    asked: set[str] = set()
    capture = Capture()
    options = {"countdown": None, "eta": None, "expires": None, "retry": True}
    with sent_event(event):
        Task.apply_async(echo._get_current_object(), (1,), {}, producer=Watched(capture, asked), **options)
    assert asked <= {"publish", "connection", "serializer"}
    assert "publish" in asked
    assert capture.rendered is not None


def test_celery_wants_only_error_translation_of_the_connection() -> None:
    asked: set[str] = set()
    capture = Capture()
    capture.connection = Watched(capture.connection, asked)  # type: ignore[assignment]
    Task.apply_async(echo._get_current_object(), (1,), {}, producer=capture)
    assert asked <= {"_reraise_as_library_errors"}


def sent_event(on: bool) -> Any:
    import contextlib

    @contextlib.contextmanager
    def switched() -> Iterator[None]:
        before = app.conf.task_send_sent_event
        app.conf.task_send_sent_event = on
        app.__dict__.pop("amqp", None)
        try:
            yield
        finally:
            app.conf.task_send_sent_event = before
            app.__dict__.pop("amqp", None)

    return switched()


def test_the_task_sent_event_makes_no_row_of_its_own(rows: InProcess) -> None:
    with sent_event(True):
        result = echo.delay("told")
    assert arguments(row_of(result)) == (["told"], {})
    assert Job.objects.count() == 1


def test_before_task_publish_may_add_a_header(rows: InProcess) -> None:
    def trace(headers: dict[str, Any], **kwargs: Any) -> None:
        headers["traceparent"] = "00-abc"

    signals.before_task_publish.connect(trace)
    try:
        row = row_of(echo.delay())
    finally:
        signals.before_task_publish.disconnect(trace)
    assert headers_of(row)["traceparent"] == "00-abc"
    assert outgoing(row, "default").headers["traceparent"] == "00-abc"


# --- arguments ------------------------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    0,
    -(2**63),
    2**200,
    1.5,
    "",
    "ä \u2028 😀",
    "a\u0000b",
    [],
    {"a": [1, {"b": None}]},
    uuid.UUID("12345678-1234-5678-1234-567812345678"),
    decimal.Decimal("1.10"),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
    datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
    datetime.date(2026, 1, 2),
    datetime.time(3, 4, 5),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_an_argument_comes_back_as_it_was(rows: InProcess, value: Any) -> None:
    assert arguments(row_of(echo.delay(value, keyword=value))) == ([value], {"keyword": value})


def test_a_nul_character_goes_all_the_way_through_a_run(jobs: InProcess) -> None:
    job = jobs.run(tasks.add, "a\u0000", "b\u0000")
    assert job.status == "succeeded", job.error
    assert json.loads(job.result) == "a\u0000b\u0000"


@pytest.mark.parametrize("serializer", ["msgpack", "yaml"])
def test_another_registered_serialiser_is_kept_as_it_wrote(rows: InProcess, serializer: str) -> None:
    pytest.importorskip(serializer)
    row = row_of(echo.apply_async(("ä", 1), {"x": [1, 2]}, serializer=serializer))
    assert serializer in row.content_type
    assert arguments(row) == (["ä", 1], {"x": [1, 2]})


@pytest.mark.parametrize("compression", ["zlib", "bzip2", "lzma"])
def test_a_compressed_body_is_compressed_once_and_read_again(rows: InProcess, compression: str) -> None:
    row = row_of(echo.apply_async(("x" * 10_000,), compression=compression))
    assert len(bytes(row.payload)) < 2000
    assert headers_of(row)["compression"]
    assert arguments(row) == (["x" * 10_000], {})


def test_a_compressed_job_runs(jobs: InProcess) -> None:
    result = tasks.effect.apply_async(("compressed",), compression="zlib")
    jobs.work()
    assert jobs.row(result).status == "succeeded"
    assert jobs.effects("compressed") == 1


@pytest.mark.parametrize("serializer", ["pickle", "application/x-python-serialize"])
def test_pickle_is_refused_naming_what_to_use(rows: InProcess, serializer: str) -> None:
    with pytest.raises(InvalidOption, match=r"pickle serializer is refused.*Use json"):
        echo.apply_async((1,), serializer=serializer)
    assert not Job.objects.exists()


def test_a_pickled_row_is_never_loaded() -> None:
    row = Job(payload=b"cos\nsystem\n(S'true'\ntR.", content_type="application/x-python-serialize", envelope="{}")
    with pytest.raises(ValueError, match="not loaded"):
        arguments(row)


def test_an_unknown_serialiser_says_so(rows: InProcess) -> None:
    with pytest.raises(InvalidOption, match=r"serializer 'jsn'.*json"):
        echo.apply_async((1,), serializer="jsn")


@pytest.mark.parametrize(
    ("args", "kwargs", "name", "kind"),
    [
        ((1, Effect(pk=5)), {}, "argument 2", "Effect"),
        ((), {"row": Effect(pk=5)}, "row", "Effect"),
        ((), {"row": {"deep": [{"in": (Effect(pk=5),)}]}}, "row", "Effect"),
        (([Effect(pk=5)],), {}, "argument 1", "Effect"),
    ],
)
def test_a_model_instance_is_named_with_what_to_pass(
    rows: InProcess, args: Any, kwargs: Any, name: str, kind: str
) -> None:
    with pytest.raises(UnserialisableArguments) as caught:
        echo.apply_async(args, kwargs)
    text = str(caught.value)
    assert text.startswith(f"test_message.echo: {name} holds a {kind}")
    assert ".pk" in text
    assert not Job.objects.exists()


def test_a_queryset_is_named_with_what_to_pass(rows: InProcess) -> None:
    with pytest.raises(UnserialisableArguments, match="values_list") as caught:
        echo.delay(Effect.objects.all())
    assert "argument 1 holds a QuerySet" in str(caught.value)


@pytest.mark.parametrize(
    "value", [object(), lambda: None, open, 1j, [object()]], ids=["object", "lambda", "builtin", "complex", "nested"]
)
def test_a_value_that_json_does_not_know_is_named(rows: InProcess, value: Any) -> None:
    with pytest.raises(UnserialisableArguments, match=r"test_message\.echo: thing \("):
        echo.delay(1, thing=value)
    assert not Job.objects.exists()


def test_bytes_come_back_as_kombus_json_brings_them(rows: InProcess) -> None:
    assert arguments(row_of(echo.delay(1, thing=b"\xff\xfe"))) == ([1], {"thing": b"\xff\xfe"})


def test_a_circular_argument_is_an_error_and_no_endless_loop(rows: InProcess) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnserialisableArguments, match="argument 1"):
        echo.delay(loop)


def test_what_can_not_be_serialised_is_both_a_type_and_a_value_error(rows: InProcess) -> None:
    for kind in (TypeError, ValueError):
        with pytest.raises(kind):
            echo.delay(object())


@override_settings(RELIABLE_JOBS={"MAX_PAYLOAD_BYTES": 1000})
def test_a_call_that_is_too_large_names_its_largest_part(rows: InProcess) -> None:
    with pytest.raises(JobTooLarge) as caught:
        echo.delay("small", ["y" * 50], photo="x" * 2000)
    text = str(caught.value)
    assert "the limit is 1000" in text
    assert "the largest part is photo" in text
    assert not Job.objects.exists()


@override_settings(RELIABLE_JOBS={"MAX_PAYLOAD_BYTES": 1000})
def test_the_limit_counts_what_is_serialised_before_compression(rows: InProcess) -> None:
    with pytest.raises(JobTooLarge, match="argument 1"):
        echo.apply_async(("x" * 2000,), compression="zlib")


@override_settings(RELIABLE_JOBS={"MAX_PAYLOAD_BYTES": 200})
def test_a_large_callback_is_no_argument_but_too_large_all_the_same(rows: InProcess) -> None:
    with pytest.raises(JobTooLarge, match="the largest part is"):
        echo.apply_async((), link=echo.s("x" * 500))


@pytest.mark.parametrize(
    "headers", [{"x": object()}, {"x": {1, 2}}, {"x": 2**64}, {"x" * 300: 1}], ids=["object", "set", "big", "long name"]
)
def test_a_header_that_can_not_travel_is_refused_at_the_call(rows: InProcess, headers: dict[str, Any]) -> None:
    with pytest.raises(UnserialisableArguments, match="header or publish option can't travel"):
        echo.apply_async((), headers=headers)
    assert not Job.objects.exists()


# --- the row and the message ----------------------------------------------------------------------------------------


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


# --- sensitive arguments --------------------------------------------------------------------------------------------


def test_a_sensitive_argument_is_not_shown_but_sent(rows: InProcess) -> None:
    for result in (login.delay("ann", "hunter2", note="n"), login.delay(user="ann", password="hunter2")):
        row = row_of(result)
        headers = outgoing(row, "default").headers
        shown = headers["argsrepr"] + headers["kwargsrepr"]
        assert "hunter2" not in shown
        assert "hunter2" not in row.envelope
        assert "ann" in shown
        assert "hunter2" in str(arguments(row))
        assert json.loads(row.envelope)["sensitive"] is True


def test_all_arguments_can_be_sensitive(rows: InProcess) -> None:
    row = row_of(all_secret.delay("hunter2", "hunter3", extra="hunter4"))
    assert "hunter" not in row.envelope


def test_the_task_sent_event_of_a_sensitive_call_is_not_kept(rows: InProcess) -> None:
    with sent_event(True):
        row = row_of(login.delay("ann", "hunter2"))
    assert "hunter2" not in row.envelope


def test_a_sensitive_argument_in_a_chain_is_hidden_in_its_own_message(jobs: InProcess) -> None:
    chain(tasks.effect.s("first"), login.si("ann", "hunter2")).apply_async()
    jobs.finish()
    row = Job.objects.get(task="test_message.login")
    assert "hunter2" not in row.envelope


# --- what no broker could take (B9), numbers and texts by another name (C17), priorities that follow (C16) ------------


@pytest.mark.promise("I7")
@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"x": float("nan")}},
        {"headers": {"x": [1, {"y": float("inf")}]}},
        {"headers": {"x": "h" * 140_000}},
        {"headers": {f"x{n}": "h" * 1000 for n in range(140)}},
        {"headers": {"x": {1: 2}}},
        {"reply_to": "r" * 300},
        {"app_id": 5},
        {"delivery_mode": 300},
        {"shadow": "s" * 140_000},
    ],
    ids=lambda options: str(options)[:30],
)
def test_b9_what_would_close_the_connection_is_refused_at_the_call(rows: InProcess, options: Any) -> None:
    for call in (lambda: echo.apply_async((1,), **options), lambda: echo.bulk_delay([(1,)], **options)):
        if "shadow" in options and call.__code__.co_names[-1] == "bulk_delay":
            continue
        with pytest.raises(UnserialisableArguments, match="can't travel in a message"):
            call()
    assert not Job.objects.exists()


def test_b9_a_header_just_below_the_limit_fits_into_the_frame(rows: InProcess) -> None:
    from reliable_jobs.dispatch.amqp_frames import publication

    row = row_of(echo.apply_async((1,), headers={"x": "h" * 126_000}))
    frames = publication(outgoing(row, "default"), channel=1, frame_max=131_072, mandatory=True)
    header_size = int.from_bytes(frames[frames.index(b"\xce") + 4 :][:4], "big")
    assert 126_000 < header_size < 131_072 - 8


def test_b9_hidden_arguments_stay_short_in_the_header(rows: InProcess) -> None:
    row = row_of(login.delay("\x00" * 10_000, "hunter2"))
    assert len(headers_of(row)["argsrepr"]) < 1100
    assert "hunter2" not in row.envelope


class Priority(enum.IntEnum):
    HIGH = 9


class Names(str, enum.Enum):
    MAIL = "mail"


def test_c17_an_enums_member_is_its_value(rows: InProcess) -> None:
    row = row_of(echo.apply_async((1,), priority=Priority.HIGH, queue=Names.MAIL, key=Names.MAIL))
    assert (row.priority, row.queue, row.key) == (9, "mail", "mail")
    (one,) = echo.bulk_delay([(1,)], priority=Priority.HIGH)
    assert Job.objects.get(pk=one).priority == 9


@pytest.mark.parametrize("priority", [True, 1.0, "3", -1, 256, float("nan")])
def test_c17_what_is_no_whole_number_is_refused(rows: InProcess, priority: Any) -> None:
    with pytest.raises(InvalidOption, match="whole number from 0 to 255"):
        echo.apply_async((1,), priority=priority)


@pytest.mark.parametrize("own", [None, 3], ids=["inherited", "the signature has one"])
def test_c16_a_link_and_a_chain_inherit_the_priority_as_in_celery(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, own: int | None
) -> None:
    monkeypatch.setitem(app.conf.changes, "task_inherit_parent_priority", True)
    step = tasks.effect.si("followed")
    step = step.set(priority=own) if own else step
    (tasks.effect.si("first") | step | tasks.effect.si("last")).apply_async(priority=7)
    tasks.effect.apply_async(("other",), priority=7, link=tasks.effect.si("linked"))
    jobs.finish()
    assert jobs.effects("followed") == jobs.effects("last") == jobs.effects("linked") == 1
    children = Job.objects.exclude(parent_id=None)
    assert list(children.values_list("priority", flat=True)) == [7, 7, 7]


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
