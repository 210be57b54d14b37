"""Every shape of link, chain, group and chord, of plain and reliable tasks, starts what it names: A3 in FOUND.md.

Run it on each supported Celery: what its canvas asks of a producer, of its connection and of a result backend differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group, shared_task

from reliable_jobs import ReliableTask
from reliable_jobs.enqueue import render
from reliable_jobs.errors import JobTooLarge
from reliable_jobs.models import Job
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs


def note(*args: Any, name: str) -> str:
    """Returns its name, so that what follows is called with it."""
    Effect.objects.create(name=name)
    return name


plain = shared_task(name="test_canvas.plain")(note)
rel = shared_task(base=ReliableTask, name="test_canvas.rel")(note)

#: Where a shape says p or r, a task of that kind is put; each notes a name of its own.
KINDS = {"p": plain, "r": rel}


def built(shape: Any, names: Any) -> Any:
    """``("chain", "r", ("group", "p", "r"))`` as a canvas."""
    if isinstance(shape, str):
        return KINDS[shape].s(name=next(names))
    kind, *parts = shape
    made = [built(part, names) for part in parts]
    if kind == "chord":
        *header, body = made
        return chord(header, body)
    return {"chain": lambda: chain(*made), "group": lambda: group(made)}[kind]()


def label(shape: Any) -> str:
    return shape if isinstance(shape, str) else f"{shape[0]}({','.join(map(label, shape[1:]))})"


def count(shape: Any) -> int:
    return 1 if isinstance(shape, str) else sum(count(part) for part in shape[1:])


def all_run(jobs: InProcess, start: Callable[[Any], Any], number: int) -> None:
    names = (f"step {index}" for index in itertools.count())
    start(names)
    jobs.finish()
    ran = sorted(Effect.objects.filter(name__startswith="step ").values_list("name", flat=True))
    assert ran == sorted(f"step {index}" for index in range(number))


PARENTS = ["p", "r"]
LINKED: list[Any] = [
    *("p", "r", ("chain", "r", "r"), ("chain", "p", "r"), ("chain", "r", "p")),
    *(("group", "r", "r"), ("group", "p", "r"), ("chord", "r", "r", "r"), ("chord", "p", "p", "r")),
    ("chain", "r", ("group", "r", "r")),
]


@pytest.mark.promise("I3")
@pytest.mark.parametrize("linked", LINKED, ids=label)
@pytest.mark.parametrize("parent", PARENTS)
def test_a3_a_link_is_started(jobs: InProcess, parent: str, linked: Any) -> None:
    all_run(jobs, lambda names: built(parent, names).apply_async(link=built(linked, names)), 1 + count(linked))


@pytest.mark.promise("I3")
@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("links", [("r", "p"), ("r", "r"), ("r", ("group", "r", "r")), (("group", "p", "r"), "r", "p")])
def test_a3_each_of_several_links_is_started(jobs: InProcess, parent: str, links: Any) -> None:
    all_run(
        jobs,
        lambda names: built(parent, names).apply_async(link=[built(linked, names) for linked in links]),
        1 + sum(map(count, links)),
    )


STEPS: list[Any] = ["p", "r", ("group", "r", "r"), ("group", "p", "r"), ("group", "p", "p")]


@pytest.mark.promise("I3")
@pytest.mark.parametrize("second", STEPS, ids=label)
@pytest.mark.parametrize("last", [None, "p", "r"])
@pytest.mark.parametrize("first", PARENTS)
def test_a3_a_chain_goes_on(jobs: InProcess, first: str, second: Any, last: str | None) -> None:
    shape = ("chain", first, second, *([last] if last else []))
    all_run(jobs, lambda names: built(shape, names).apply_async(), count(shape))


HEADERS: list[Any] = [("r", "r"), ("p", "p"), ("r", "p"), (("chain", "r", "p"), ("chain", "p", "r"))]
BODIES: list[Any] = ["p", "r", ("chain", "r", "r"), ("chain", "p", "r"), ("group", "r", "r"), ("chord", "r", "r", "r")]


@pytest.mark.promise("I3")
@pytest.mark.parametrize("body", BODIES, ids=label)
@pytest.mark.parametrize("header", HEADERS, ids=lambda header: ",".join(map(label, header)))
def test_a3_the_body_of_a_chord_runs(jobs: InProcess, header: Any, body: Any) -> None:
    shape = ("chord", *header, body)
    all_run(jobs, lambda names: built(shape, names).apply_async(), count(shape))


# --- results are no arguments of a request (C8) -----------------------------------------------------------------------


@shared_task(base=ReliableTask, name="test_canvas.large")
def large(size: int) -> str:
    Effect.objects.create(name="large")
    return "x" * size


@shared_task(base=ReliableTask, name="test_canvas.length")
def length(value: Any) -> int:
    total = len(value) if isinstance(value, str) else sum(map(len, value))
    Effect.objects.create(name=f"length {total}")
    return total


@shared_task(base=ReliableTask, name="test_canvas.enqueues_large")
def enqueues_large(size: int) -> None:
    length.delay("x" * size)


@pytest.mark.promise("I3")
@pytest.mark.parametrize(
    ("start", "total"),
    [
        (lambda: (large.s(100_000) | length.s()).apply_async(), 100_000),
        (lambda: large.apply_async((100_000,), link=length.s()), 100_000),
        (lambda: chord([large.s(40_000), large.s(40_000)], length.s()).apply_async(), 80_000),
        (lambda: (plain.si(name="x" * 100) | large.si(100_000) | length.s()).apply_async(), 100_000),
    ],
    ids=["chain", "link", "chord", "behind a plain task"],
)
def test_c8_a_large_result_is_handed_on(jobs: InProcess, start: Callable[[], Any], total: int) -> None:
    start()
    jobs.finish()
    assert jobs.effects(f"length {total}") == 1
    assert set(Job.objects.values_list("status", flat=True)) == {"succeeded"}


@pytest.mark.promise("I7")
def test_c8_a_functions_own_call_keeps_its_limit(jobs: InProcess) -> None:
    with pytest.raises(JobTooLarge, match="MAX_PAYLOAD_BYTES"):
        length.delay("x" * 100_000)
    job = jobs.run(enqueues_large, 100_000)
    assert (job.status, "MAX_PAYLOAD_BYTES" in job.error) == ("failed", True)


def test_c8_what_no_broker_takes_is_refused_with_its_reason(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "MAX_FOLLOWING_BYTES", 90_000)
    (large.s(100_000) | length.s()).apply_async()
    jobs.work()
    job = Job.objects.get(task=large.name)
    assert (job.status, "more than a broker" in job.error) == ("failed", True), job.error
    assert Job.objects.get(task=length.name).status == "failed"
