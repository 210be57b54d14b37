"""Workflows among the work that producers ask for: what must come of each, whatever is killed meanwhile.

A job that a workflow starts later is in no expectation by its id, and is to succeed (checker.py); those that are to
fail are named.
"""

from __future__ import annotations

import random
from typing import Any

from celery import chain, chord, group

from qa.chaos.work import Expectation, expect, seconds
from qa.chaos.workflow_tasks import becomes, breaks, finished, gather, step, told_by_id, told_of_error
from reliable_jobs.workflow.chords import on_finished


def chain_of_five(rng: random.Random, name: str) -> list[Expectation]:
    names = [f"{name}/{number}" for number in range(4)]
    steps = [step.si(one, seconds(rng) / 2) for one in names]
    return [expect(chain(*steps, gather.s(f"{name}/end", names[-1])).apply_async(), *names, f"{name}/end")]


def plain_chord(rng: random.Random, name: str) -> list[Expectation]:
    names = [f"{name}/{number}" for number in range(rng.randint(1, 8))]
    parts = [step.si(one, seconds(rng) / 2) for one in names]
    return [expect(chord(parts, gather.s(f"{name}/body", names)).apply_async(), *names, f"{name}/body")]


def in_the_middle(rng: random.Random, name: str) -> list[Expectation]:
    """Task, group, task, group."""
    first, last = f"{name}/first", [f"{name}/last{number}" for number in range(2)]
    names = [f"{name}/{number}" for number in range(3)]
    canvas = chain(
        step.si(first, seconds(rng)),
        group(step.si(one, seconds(rng) / 2) for one in names),
        gather.s(f"{name}/between", names),
        group(step.si(one) for one in last),
    )
    ends = canvas.apply_async().results
    return [expect(ends[0], first, *names, f"{name}/between", last[0]), expect(ends[1], last[1])]


def three_deep(rng: random.Random, name: str) -> list[Expectation]:
    def parts(level: int) -> list[str]:
        return [f"{name}/{level}.{number}" for number in range(2)]

    inner = chord([step.si(one, seconds(rng) / 2) for one in parts(3)], gather.s(f"{name}/body3", parts(3)))
    middle = chord([inner, *(step.si(one) for one in parts(2))], gather.s(f"{name}/body2", [parts(3), *parts(2)]))
    outer = chord(
        [*(step.si(one) for one in parts(1)), middle],
        gather.s(f"{name}/body1", [*parts(1), [parts(3), *parts(2)]]),
    )
    bodies = [f"{name}/body{level}" for level in (1, 2, 3)]
    return [expect(outer.apply_async(), *parts(1), *parts(2), *parts(3), *bodies)]


def replaced_part(rng: random.Random, name: str) -> list[Expectation]:
    one, two = f"{name}/one", f"{name}/two"
    values = [[f"{two}/0", f"{two}/1"], one]
    canvas = chord([becomes.si(two, seconds(rng) / 2), step.si(one)], gather.s(f"{name}/body", values))
    names = (one, two, f"{two}/0", f"{two}/1", f"{two}/in place", f"{name}/body")
    return [expect(canvas.apply_async(), *names)]


def failing_chord(rng: random.Random, name: str) -> list[Expectation]:
    """A part fails: the body must not run, both kinds of errbacks are called once, and whoever asked for the end."""
    names = [f"{name}/{number}" for number in range(rng.randint(1, 4))]
    bad = breaks.si()
    bad.link_error(told_of_error.s(f"{name}/part"))
    body = on_finished(gather.s(f"{name}/never", None), finished.s(f"{name}/ended"))
    body.link_error(told_by_id.s(f"{name}/told"))
    result = chord([*(step.si(one, seconds(rng) / 2) for one in names), bad], body).apply_async()
    ends = ",".join(["failed", *["succeeded"] * len(names)])
    effects = [*names, f"{name}/part/ValueError", f"{name}/told", f"{name}/ended/{ends}"]
    part = result.parent.results[-1]
    return [expect(result, *effects, ends="failed"), {**expect(part, ends="failed"), "effects": {}}]


def failing_chain(rng: random.Random, name: str) -> list[Expectation]:
    bad = breaks.si()
    bad.link_error(told_by_id.s(f"{name}/told"))
    result = chain(step.si(f"{name}/first", seconds(rng)), bad, step.si(f"{name}/never")).apply_async()
    return [
        expect(result.parent, f"{name}/first", f"{name}/told", ends="failed"),
        {**expect(result, ends="failed"), "effects": {}},
    ]


def linked(rng: random.Random, name: str) -> list[Expectation]:
    links = [step.si(f"{name}/link{number}") for number in range(2)]
    links.append(chain(step.si(f"{name}/a"), step.si(f"{name}/b")))
    made = step.apply_async((name, seconds(rng)), link=links)
    return [expect(made, name, f"{name}/link0", f"{name}/link1", f"{name}/a", f"{name}/b")]


KINDS: tuple[Any, ...] = (
    chain_of_five,
    plain_chord,
    in_the_middle,
    three_deep,
    replaced_part,
    failing_chord,
    failing_chain,
    linked,
)
