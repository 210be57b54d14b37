"""What Celery renders into our producer: what it asks of that, which headers and arguments are refused or hidden."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Task, chain, shared_task, signals

from reliable_jobs import ReliableTask
from reliable_jobs.enqueue.render import Capture
from reliable_jobs.errors import InvalidOption, UnserialisableArguments
from reliable_jobs.message.decode import arguments, headers_of
from reliable_jobs.message.row_to_message import outgoing
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.message.rendered import echo, login, row_of
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks

rows = inprocess.rows
jobs = inprocess.jobs


@shared_task(base=ReliableTask, name="test_message.all_secret", sensitive=True)
def all_secret(*args: str, **kwargs: str) -> None:
    return None


# --- what Celery asks of a producer -----------------------------------------------------------------------------------


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


# --- sensitive arguments ----------------------------------------------------------------------------------------------


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
    from reliable_jobs.dispatch.amqp_pipeline import publication

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
