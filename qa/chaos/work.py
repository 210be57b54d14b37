"""What producers ask for, each piece with what must come of it.

A piece is enqueued inside an open transaction and answers with expectations, as the ledger keeps them:

    id        the job's, where the caller knows it
    ends      "succeeded" or "failed"
    attempts  failures that are planned; one more, and an outage has cost an attempt
    effects   name of a row → how often it must be there, [least, most]; a row that no expectation names is a phantom
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from typing import Any

from django.db import transaction

from qa.chaos import tasks

Expectation = dict[str, Any]
#: Names "mixed" or "workflows" in a producer's environment.
WORK = "CHAOS_WORK"
#: "At least once": a non-atomic body, whose transactions are its own.
UNBOUNDED = 10**6


def expect(job: Any, *names: str, most: int = 1, ends: str = "succeeded", attempts: int = 0) -> Expectation:
    job_id = str(getattr(job, "id", job)) if job is not None else None
    return {"id": job_id, "ends": ends, "attempts": attempts, "effects": {name: [1, most] for name in names}}


def seconds(rng: random.Random) -> float:
    """How long a body takes: long enough to be killed in it, short enough to be done between two kills."""
    return round(rng.choice((0.0, 0.1, 0.2, 0.3, 0.8)), 2)


def plain(rng: random.Random, name: str) -> list[Expectation]:
    return [expect(tasks.book.delay(name, seconds(rng)), name)]


def outside(rng: random.Random, name: str) -> list[Expectation]:
    name = f"fenced:{name}"
    return [expect(tasks.call.delay(name, seconds(rng)), name, most=UNBOUNDED)]


def retrying(rng: random.Random, name: str) -> list[Expectation]:
    failures = rng.randint(1, 2)
    return [expect(tasks.flaky.delay(name, failures, seconds(rng)), f"{name}/try{failures}", attempts=failures)]


def scheduled(rng: random.Random, name: str) -> list[Expectation]:
    return [expect(tasks.book.apply_async((name, seconds(rng)), countdown=rng.uniform(0.5, 5.0)), name)]


def keyed(rng: random.Random, name: str) -> list[Expectation]:
    """Both producers may ask for the same one."""
    name = f"keyed:{rng.randrange(400)}"
    return [expect(tasks.book.apply_async((name, 0.2), key=name, key_forever=True), name)]


def spawning(rng: random.Random, name: str) -> list[Expectation]:
    failures, children = rng.randint(0, 1), rng.randint(1, 3)
    last = f"{name}/try{failures}"
    made = tasks.spawns.delay(name, failures, children, seconds(rng))
    return [expect(made, last, *(f"{last}/child{number}" for number in range(children)), attempts=failures)]


def chained(rng: random.Random, name: str) -> list[Expectation]:
    then = tasks.book.si(f"{name}/then", seconds(rng))
    return [expect(tasks.book.apply_async((name, seconds(rng)), link=then), name, f"{name}/then")]


def pieces(rng: random.Random, name: str) -> list[Expectation]:
    number = rng.randint(2, 3)
    made = tasks.in_pieces.delay(name, number, seconds(rng) / 2)
    return [expect(made, *(f"{name}/piece{piece}" for piece in range(number)))]


def many(rng: random.Random, name: str) -> list[Expectation]:
    names = [f"{name}/{number}" for number in range(rng.randint(3, 15))]
    made = tasks.book.bulk_delay((one, round(seconds(rng) / 4, 3)) for one in names)
    return [expect(job, one) for job, one in zip(made, names, strict=True)]


def packed(rng: random.Random, name: str) -> list[Expectation]:
    """Jobs that travel in bundles; in a third of the orders one of them fails."""
    names = [f"{name}/{number}" for number in range(rng.randint(2, 30))]
    bad = rng.choice(names) if rng.random() < 0.33 else ""
    made = tasks.small.bulk_delay((one, round(seconds(rng) / 20, 3), one == bad) for one in names)
    return [
        expect(job, ends="failed") if one == bad else expect(job, one) for job, one in zip(made, names, strict=True)
    ]


def shared(rng: random.Random, name: str) -> list[Expectation]:
    """Jobs that share messages and nothing else. One in five fails, comes again, or keeps the others waiting for
    longer than a message may."""
    names = [f"{name}/{number}" for number in range(rng.randint(20, 60))]
    odd = {one: rng.choice(("fails", "retries", "is slow")) for one in names if rng.random() < 0.2}
    spans = {one: 1.3 if way == "is slow" and rng.random() < 0.2 else 0.03 for one, way in odd.items()}
    made = tasks.shares.bulk_delay((one, spans.get(one, 0.01), odd.get(one, "")) for one in names)
    ends: dict[str, Callable[[Any, str], Expectation]] = {
        "fails": lambda job, _: expect(job, ends="failed"),
        "retries": lambda job, one: expect(job, one, attempts=1),
    }
    return [ends.get(odd.get(one, ""), expect)(job, one) for job, one in zip(made, names, strict=True)]


def failing(rng: random.Random, name: str) -> list[Expectation]:
    return [expect(tasks.fails.delay(name, seconds(rng)), ends="failed")]


def undone(rng: random.Random, name: str) -> list[Expectation]:
    """Enqueued in a savepoint that rolls back while its transaction goes on."""
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        tasks.book.delay(f"{name}/undone")
        raise ZeroDivisionError
    return []


def poisonous(name: str, way: str) -> list[Expectation]:
    return [expect(tasks.poison.delay(f"poison:{name}", way), ends="failed")]


#: Kind of work → how often it is chosen.
MIX: dict[Callable[[random.Random, str], list[Expectation]], int] = {
    plain: 8,
    outside: 5,
    retrying: 2,
    scheduled: 3,
    keyed: 2,
    spawning: 2,
    chained: 1,
    pieces: 1,
    many: 1,
    packed: 1,
    shared: 1,
    failing: 1,
    undone: 1,
}


def mix() -> dict[Callable[[random.Random, str], list[Expectation]], int]:
    """What this campaign's orders are made of: see ``--work``."""
    from qa.chaos import workflows  # which is made of what stands here

    flows = dict.fromkeys(workflows.KINDS, 1)
    return flows if os.environ.get(WORK) == "workflows" else {**MIX, **flows}


def some(rng: random.Random, order: str) -> list[Expectation]:
    """The jobs of one order, enqueued in the open transaction."""
    kinds = mix()
    chosen = rng.choices(list(kinds), list(kinds.values()), k=rng.randint(1, 3))
    return [one for number, kind in enumerate(chosen) for one in kind(rng, f"{order}.{number}")]
