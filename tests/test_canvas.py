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
from tests import inprocess
from tests.inprocess import InProcess
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
