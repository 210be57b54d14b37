"""Whatever another program may put into the queue: the worker stays alive, says so in the words that it has for it,
keeps what it can't run as a parked job, and runs the next good one."""

from __future__ import annotations

import json
import pickle
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from amqp.serialization import dumps as amqp_dumps
from hypothesis import Phase, given
from hypothesis import strategies as st

from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job
from reliable_jobs.run.arrival import foreign_id
from tests.support.generated import examples
from tests.support.harness import Stack, Worker, wait_until
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.promise("I7")]

#: Records with a traceback that Celery or the app is to write, and nothing else may.
EXPECTED = (
    "Received unregistered task",
    "Received invalid task message",
    "Can't decode message body",
    "Received and deleted unknown message",
    # A body's own error: a text that the database refuses, say.
    'testapp/tasks.py", line ',
)


class Sent(NamedTuple):
    body: bytes
    content_type: Any
    content_encoding: Any
    headers: Any
    properties: dict[str, Any]


def publish(stack: Stack, messages: list[Sent]) -> None:
    with stack._channel() as channel:
        for sent in messages:
            properties = dict(sent.properties)
            raw = channel.prepare_message(
                sent.body,
                priority=properties.pop("priority", None),
                content_type=sent.content_type,
                content_encoding=sent.content_encoding,
                headers=sent.headers,
                properties=properties,
            )
            channel.basic_publish(raw, exchange="", routing_key=stack.queue)


def records(log: str) -> Iterator[str]:
    """The log's entries with the lines that belong to each."""
    return (part for part in re.split(r"^(?=\[\d{4}-)", log, flags=re.MULTILINE) if part.strip())


def complaints(log: str) -> list[str]:
    return [
        record
        for record in records(log)
        if ("Traceback" in record or "CRITICAL" in record or "Unrecoverable" in record)
        and not any(words in record for words in EXPECTED)
    ]


def survives(stack: Stack, worker: Worker, messages: list[Sent]) -> str:
    """The worker takes all of them and then a good job; returns what it said meanwhile."""
    before = len(worker.log)
    publish(stack, messages)
    good = tasks.effect.delay("good")
    wait_until(
        lambda: Job.objects.filter(pk=good.id, status="succeeded").exists() or not worker.alive, "a good job runs"
    )
    assert worker.alive, worker.log[before:][-5000:]
    wait_until(lambda: stack.depth() == 0, "the queue is empty")
    said = worker.log[before:]
    assert not complaints(said), complaints(said)[0][-4000:]
    return said


#: No NaN nor infinity: RabbitMQ closes the connection over one in a header. Bodies have theirs below.
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["\x00", "<b>", "9999-99-99", "2040-01-01T00:00:00", "x" * 300, "é\u20ac", "None"]),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(-5, 5), max_size=2),
)
task_names = st.one_of(st.just(tasks.effect.name), st.just(tasks.effect.name), st.just("nobody.knows"), odd)
pointers = st.one_of(
    odd,
    st.fixed_dictionaries({}, optional=dict.fromkeys(("content_version", "using", "send", "requeues", "more"), odd)),
    st.fixed_dictionaries({"content_version": st.integers(-1, 2), "using": odd, "send": odd}),
)
HEADERS = (
    *("lang", "argsrepr", "kwargsrepr", "origin", "eta", "expires", "retries", "timelimit", "group", "group_index"),
    *("root_id", "parent_id", "shadow", "stamps", "stamped_headers", "ignore_result", "replaced_task_nesting"),
    *("compression", "redelivered", "delivery_info", "chord", "callbacks", "meth"),
)
headers = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "task": task_names,
            "id": st.one_of(st.uuids().map(str), st.uuids().map(str), odd),
            HEADER: pointers,
            **dict.fromkeys(HEADERS, odd),
        },
    ),
    st.fixed_dictionaries({"task": st.just(tasks.effect.name), "id": st.uuids().map(str), "lang": st.just("py")}),
)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


protocol_2 = st.tuples(
    st.one_of(st.just(["x"]), st.lists(odd, max_size=3), odd),
    st.one_of(st.just({}), st.dictionaries(st.sampled_from(["name", "value", "z", "self"]), odd, max_size=2), odd),
    st.one_of(
        st.just({"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
        st.fixed_dictionaries({}, optional=dict.fromkeys(("callbacks", "errbacks", "chain", "chord"), odd)),
        odd,
    ),
)
protocol_1 = st.fixed_dictionaries(
    {},
    optional={
        "task": task_names,
        "id": st.one_of(st.uuids().map(str), odd),
        "args": st.one_of(st.just(["x"]), odd),
        "kwargs": st.one_of(st.just({}), odd),
        **dict.fromkeys(("eta", "expires", "utc", "retries", "timelimit", "taskset", "chord", "callbacks"), odd),
    },
)
bodies = st.one_of(
    protocol_2.map(_json),
    protocol_2.map(_json),
    protocol_1.map(_json),
    protocol_2.map(_json).map(lambda body: body[: len(body) // 2]),
    protocol_2.map(pickle.dumps),
    st.binary(max_size=50),
    odd.map(_json),
    st.sampled_from(
        [b"", b"[" * 100_000, b'[["\\ud800"], {}, {}]', b"[[1e999, -0, NaN], {}, {}]", b"\xff\xfe[\x00]\x00"]
    ),
)
content_types = st.sampled_from(
    ["application/json"] * 6
    + [
        "application/x-python-serialize",
        "application/x-yaml",
        "application/x-msgpack",
        "text/plain",
        "x" * 200,
        "",
        None,
    ]
)
encodings = st.sampled_from(["utf-8"] * 6 + ["binary", "latin-1", "utf-16", "nobody-knows", "", None])
properties = st.fixed_dictionaries(
    {},
    optional={
        "correlation_id": st.one_of(st.uuids().map(str), st.text(max_size=20)),
        "reply_to": st.text(max_size=20),
        "priority": st.integers(0, 255),
        "message_id": st.text(max_size=10),
        "delivery_mode": st.sampled_from([1, 2]),
        "type": st.text(max_size=5),
    },
)


def _can_travel(sent: Sent) -> bool:
    try:
        amqp_dumps("F", [sent.headers or {}])
        for text in (sent.content_type, sent.content_encoding, *sent.properties.values()):
            if isinstance(text, str):
                amqp_dumps("s", [text])
    except Exception:  # of the codec's, struct's or Python's own
        return False
    return True


messages = st.builds(Sent, bodies, content_types, encodings, headers, properties).filter(_can_travel)


def _must_leave_a_row(sent: Sent) -> bool:
    """Not one that claims to be a job of ours, which has its row or is a copy too late; nor one that the worker keeps
    for a time to come."""
    said = sent.headers or {}
    return not isinstance(said.get(HEADER), dict) and "eta" not in said and b'"eta"' not in sent.body


def nothing_is_lost(batch: list[Sent]) -> None:
    sure = [sent for sent in batch if _must_leave_a_row(sent)]
    named = {foreign_id(sent.headers["id"]) for sent in sure if sent.headers and sent.headers.get("id")}
    nameless = sum(1 for sent in sure if not (sent.headers or {}).get("id") and b'"id"' not in sent.body)

    def missing() -> list[Any]:
        rows = set(Job.objects.values_list("pk", flat=True))
        lost = [
            sent
            for sent in sure
            if sent.headers and sent.headers.get("id") and foreign_id(sent.headers["id"]) not in rows
        ]
        nobody = len(rows - named) - 1 - nameless  # and the good one
        return [*lost, *([f"{-nobody} of those without an id"] if nobody < 0 else [])]

    try:
        wait_until(lambda: not missing(), "every message has its row")
    except AssertionError as late:
        raise AssertionError(f"lost: {missing()}") from late


@examples(12, phases=[Phase.generate])
@given(batch=st.lists(messages, min_size=15, max_size=30))
def test_a_worker_outlives_any_message_and_none_is_lost(stack: Stack, worker: Worker, batch: list[Sent]) -> None:
    stack.clean()
    survives(stack, worker, batch)
    nothing_is_lost(batch)


def _plain(body: bytes, **said: Any) -> Sent:
    return Sent(body, "application/json", "utf-8", {"lang": "py", "task": tasks.effect.name, **said}, {})


GOOD = b'[["x"], {}, {}]'
#: Each of these ended the worker, and after it the next one to which it was redelivered; or was acknowledged and gone.
DEADLY = {
    "a body of no parts": _plain(b"[]", id="1"),
    "a body of two parts": _plain(b"[[], {}]", id="2"),
    "a body that is a number": _plain(b"17", id="3"),
    "a body that is null": _plain(b"null", id="4"),
    "no id": _plain(GOOD),
    "an id that is null": _plain(GOOD, id=None),
    "an id that is a list": _plain(GOOD, id=["x"]),
    "a task name that is a list": _plain(GOOD, id="5", task=["x"]),
    "a task name with a NUL": _plain(GOOD, id="6", task="\x00"),
    "an unknown task with an id with a NUL": _plain(GOOD, id="\x00", task="nobody.knows"),
    "an unknown task with no id and a body of another type": Sent(b"x", "text/plain", "utf-8", {"task": "nobody"}, {}),
    "a time limit of three": _plain(GOOD, id="7", timelimit=[1, 2, 3]),
    "a time limit that is a text": _plain(GOOD, id="8", timelimit="soon"),
    "an expiry that is a list": _plain(GOOD, id="9", expires=[1]),
    "an eta that is a number": _plain(GOOD, id="10", eta=17),
    "retries that are a text": _plain(GOOD, id="11", retries="x"),
    "positional arguments that are a text": _plain(b'["x", {}, {}]', id="12"),
    "keyword arguments that are a list": _plain(b"[[], [1], {}]", id="13"),
    "a follow-up that is a text": _plain(b'[["x"], {}, "then"]', id="14"),
    "callbacks that are a text": _plain(b'[["x"], {}, {"callbacks": "then"}]', id="15"),
    "a chain of numbers": _plain(b'[["x"], {}, {"chain": [1]}]', id="16"),
    "a body a hundred thousand lists deep": _plain(b"[" * 100_000, id="17"),
    "a content type with a NUL": _plain(GOOD, id="18")._replace(content_type="\x00"),
    "protocol 1 with no id": Sent(
        json.dumps({"task": tasks.effect.name, "args": []}).encode(), *_plain(b"")[1:3], {}, {}
    ),
}


@pytest.mark.parametrize("what", DEADLY)
def test_a_message_that_no_worker_can_read_is_parked_and_ends_none(stack: Stack, worker: Worker, what: str) -> None:
    survives(stack, worker, [DEADLY[what]] * 3)
    named = bool((DEADLY[what].headers or {}).get("id"))
    parked = Job.objects.filter(status="failed", reason="parked")
    wait_until(lambda: parked.count() == (1 if named else 3), "each is parked")
    assert all(stack.kinds(job) == ["parked"] and job.error for job in parked)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [("application/x-python-serialize", "binary"), ("application/json", "utf-8"), ("application/x-yaml", "utf-8")],
)
@pytest.mark.parametrize("known", [True, False])
def test_a_pickle_or_yaml_is_never_loaded(
    stack: Stack, worker: Worker, tmp_path: Path, content_type: str, encoding: str, known: bool
) -> None:
    body = pickle.dumps(([_Touch(tmp_path / "loaded")], {}, {}))
    if "yaml" in content_type:
        body = f"!!python/object/apply:os.mkdir ['{tmp_path / 'loaded'}']".encode()
    said = {"task": tasks.effect.name if known else "nobody.knows", "id": str(uuid.uuid4()), "lang": "py"}
    survives(stack, worker, [Sent(body, content_type, encoding, said, {}), Sent(body, content_type, encoding, {}, {})])
    wait_until(lambda: Job.objects.filter(reason="parked").count() == 2, "both are parked")
    assert not (tmp_path / "loaded").exists()
    assert bytes(Job.objects.get(pk=said["id"]).payload) == body


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/x-yaml"])
def test_a_row_that_holds_a_pickle_is_sent_but_never_loaded(
    stack: Stack, worker: Worker, tmp_path: Path, content_type: str
) -> None:
    """Written by hand, or by somebody who may write the table but not run code on the workers."""
    job = stack.row_only(tasks.effect, "x")
    body = pickle.dumps(([_Touch(tmp_path / "loaded")], {}, {}))
    Job.objects.filter(pk=job.pk).update(payload=body, content_type=content_type, content_encoding="binary")
    stack.sweep()
    wait_until(lambda: stack.kinds(job) == ["parked"], "the worker hands it back")
    job = stack.job(job.pk)
    assert (job.status, job.reason) == ("waiting", "parked")
    assert "untrusted" in job.error
    assert not (tmp_path / "loaded").exists()
    survives(stack, worker, [])
