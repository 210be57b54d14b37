"""Rows that a person or another program has written: what is odd in one of them stops nothing that is done to many."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import compression

from reliable_jobs import jobs as public
from reliable_jobs import lifecycle
from reliable_jobs.models import Job
from reliable_jobs.status import Status
from tests.lifecycle.made import make
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.support.rows import now

pytestmark = pytest.mark.django_db

jobs = inprocess.jobs
ENVELOPE = {"headers": {}, "properties": {}, "exchange": "", "routing_key": "celery"}
#: No row has such an envelope by itself.
UNREADABLE = {"no JSON": "no json", "a list": "[]", "a text": '"text"', "null": "null", "deep": "[" * 100_000}


# --- requeue ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I7")
@pytest.mark.parametrize("queue", [None, "other"], ids=["same queue", "other queue"])
@pytest.mark.parametrize("had", ["celery", ""], ids=["with a queue", "without"])
@pytest.mark.parametrize("envelope", UNREADABLE)
def test_a_requeue_passes_over_a_row_without_a_message(envelope: str, had: str, queue: str | None) -> None:
    odd, good = make("failed", envelope=UNREADABLE[envelope], queue=had), make("failed")
    report = lifecycle.requeue([odd.pk, good.pk], "default", actor="ann", queue=queue)
    assert report.done == [good.pk]
    assert report.skipped == {odd.pk: "its envelope can't be read, so there is no message to send: call the task again"}
    assert now(odd).status == "failed"


@pytest.mark.parametrize("envelope", ["{}", '{"exchange": null}', '{"headers": []}'])
@pytest.mark.parametrize("queue", [None, "other"], ids=["same queue", "other queue"])
def test_a_requeue_of_an_envelope_that_lacks_keys_is_done(envelope: str, queue: str | None) -> None:
    """The sweep says of it what is missing."""
    odd, good = make("failed", envelope=envelope), make("failed")
    report = lifecycle.requeue([odd.pk, good.pk], "default", actor="ann", queue=queue)
    assert (set(report.done), report.skipped) == ({odd.pk, good.pk}, {})


@pytest.mark.promise("I2")
@pytest.mark.parametrize("envelope", UNREADABLE)
def test_a_sweep_sends_the_others(jobs: InProcess, envelope: str) -> None:
    make(envelope=UNREADABLE[envelope])
    good = make(queue=jobs.queue, envelope=json.dumps({**ENVELOPE, "routing_key": jobs.queue}))
    jobs.sweep()
    assert [message.headers["id"] for message in jobs.take()] == [str(good.pk)]


# --- cancel -----------------------------------------------------------------------------------------------------------

STEP = {"task": "some.step", "args": [], "kwargs": {}, "options": {"task_id": str(uuid.uuid4())}}


def _zipped(how: str) -> Callable[[], dict[str, Any]]:
    def columns() -> dict[str, Any]:
        follow = json.dumps({"chain": [STEP], "filling": "x" * 20_000_000})
        payload, kind = compression.compress(f"[[], {{}}, {follow}]".encode(), how)
        return {"payload": payload, "envelope": json.dumps({**ENVELOPE, "headers": {"compression": kind}})}

    return columns


def _aliases() -> dict[str, Any]:
    """A group of ten groups of ten groups …: 1,000 tasks."""
    pytest.importorskip("yaml")
    inner = f"&g0 {{task: {'some.step' * 40}, options: {{task_id: x}}}}"
    levels = [f"  g0: {inner}"]
    for level in range(1, 4):
        tasks = ", ".join([f"*g{level - 1}"] * 10)
        levels.append(f"  g{level}: &g{level} {{subtask_type: group, kwargs: {{tasks: [{tasks}]}}}}")
    text = "\n".join(["- []", "- {}", "-", *levels, "  chain: [*g3]"])
    return {"payload": text.encode(), "content_type": "application/x-yaml"}


def _endless() -> dict[str, Any]:
    pytest.importorskip("yaml")
    text = "- []\n- {}\n- chain: [&g {subtask_type: group, kwargs: {tasks: [*g]}}]"
    return {"payload": text.encode(), "content_type": "application/x-yaml"}


def _deep() -> dict[str, Any]:
    signature = "{}"
    for _ in range(1500):
        signature = f'{{"subtask_type": "group", "kwargs": {{"tasks": [{signature}]}}}}'
    return {"payload": f'[[], {{}}, {{"chain": [{signature}]}}]'.encode()}


BOMBS: dict[str, Callable[[], dict[str, Any]]] = {
    "zlib": _zipped("zlib"),
    "bzip2": _zipped("bzip2"),
    "lzma": _zipped("lzma"),
    "aliases": _aliases,
    "an alias in itself": _endless,
    "deep": _deep,
}


def _cancel(job: Job) -> None:
    assert lifecycle.cancel([job.pk], "default", actor="ann").done == [job.pk]


def _cancel_workflow(job: Job) -> None:
    assert public.cancel_workflow(job.pk, actor="ann").done == [job.pk]


@contextlib.contextmanager
def at_most(size: int) -> Iterator[None]:
    """Python holds no more bytes at once meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cancel", [_cancel, _cancel_workflow])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_cancel_does_not_unpack_a_bomb(bomb: str, cancel: Any) -> None:
    columns = BOMBS[bomb]()
    job = make(root_id=uuid.uuid4(), **columns)
    # To trace takes as long as to unpack; the others are too many, and not too large.
    with at_most(15_000_000) if "compression" in columns.get("envelope", "") else contextlib.nullcontext():
        cancel(job)
    assert Job.objects.get().status == Status.CANCELLED


@pytest.mark.promise("I7")
def test_the_steps_behind_a_large_message_are_cancelled_too() -> None:
    """What is long as it stands in the row is no bomb."""
    job = make(payload=json.dumps([["x" * 400_000], {}, {"chain": [STEP]}]).encode())
    _cancel(job)
    assert dict(Job.objects.values_list("task", "status"))["some.step"] == "cancelled"


@pytest.mark.parametrize(
    ("step", "task"),
    [('task: "a\\0b"', "a\\x00b"), ("task: a, args: [!!set {x}]", "a"), ("task: a, kwargs: {2026-12-01: 2}", "a")],
    ids=["NUL in the name", "a set", "a day as a key"],
)
def test_a_step_that_the_row_cant_hold_stops_no_cancel(step: str, task: str) -> None:
    pytest.importorskip("yaml")
    step_id = uuid.uuid4()
    payload = f"- []\n- {{}}\n- chain: [{{{step}, options: {{task_id: {step_id}}}}}]".encode()
    _cancel(make(payload=payload, content_type="application/x-yaml"))
    assert (Job.objects.get(pk=step_id).task, Job.objects.get(pk=step_id).status) == (task, "cancelled")
