"""Rows per second from the table to the broker, confirmed: rows that a committed request has left unsent."""

from __future__ import annotations

import contextlib
import functools
import time

from benchmarks.harness import Arena, Benchmark, Contender
from benchmarks.horizon import held_horizon
from benchmarks.rivals import Rival


def send_one_by_one(rival: Rival, count: int) -> None:
    """In the child: what a relay without a pipeline can do at best, there being no rows to read."""
    from benchmarks.project.tasks import effect

    for number in range(count):
        effect.apply_async((number,))


def sweep_until_sent(rival: Rival) -> None:
    """In the child: what ``reliable_jobs_sweep`` does, without its pauses."""
    from benchmarks.project.celery import app
    from reliable_jobs.models import Job
    from reliable_jobs.sweep.sweeper import sweep

    while Job.objects.due().exists():
        sweep(app)


def _fill(arena: Arena, count: int) -> None:
    arena.child("benchmarks.child:fill", count=count)
    arena.sql("ANALYZE")


@functools.cache
def _filled(count: int) -> functools.partial[None]:
    return functools.partial(_fill, count=count)


def measure(
    arena: Arena, rows: int, slow: int, way: str, is_slow: bool = False, held: bool = False
) -> dict[str, float]:
    """Start the relay, and count the queue's messages from outside: from the first that arrives to the last."""
    count = slow if is_slow else rows
    arena.open(None if way == "loop" else _filled(count))
    with held_horizon(arena) if held else contextlib.nullcontext(), arena.counting() as messages:
        if way == "loop":
            arena.spawn("benchmarks.relay:send_one_by_one", count=count)
        elif way == "sweep":
            arena.spawn("benchmarks.relay:sweep_until_sent")
        else:
            arena.start(arena.rival.relays())
        first = arena.wait_until(messages, "a first message", 60, every=0.005)
        started = time.perf_counter()

        def arrived() -> bool:
            return messages() >= count

        arena.wait_until(arrived, f"{count:,} messages", 60 + count / 100, every=0.005)
        seconds = time.perf_counter() - started
        if way == "relay" or way == "sweep":
            left = {"reliable_jobs_job": "sends = 0", "celery_outbox": "true"}
            table = arena.rival.stored.rsplit(" ", 1)[1]
            unsent = f"SELECT count(*) FROM {table} WHERE {left[table]}"
            arena.wait_until(lambda: arena.number(unsent) == 0, "no row is left unsent", 10)
        arena.end_processes()
        arena.require("messages", messages(), count)
    return {"rows/s": (count - first) / seconds}


BENCHMARK = Benchmark(
    about="committed unsent rows, drained by one process; messages counted in the queue from outside, from the first "
    "to the last; then the rows are looked at. 'slow' is the number of rows for those that do fewer than 2,000/s",
    contenders=(
        Contender("django-celery-outbox", "celery_outbox:CeleryOutbox", {"way": "relay", "is_slow": True}),
        Contender("… batches of 1000, 8 threads", "celery_outbox:LargeBatches", {"way": "relay", "is_slow": True}),
        Contender("apply_async, confirmed, no rows", "celery:BareCelery", {"way": "loop", "is_slow": True}),
        Contender("reliable_jobs_relay", "reliable:Relay", {"way": "relay"}),
        Contender("reliable_jobs_relay, horizon held", "reliable:Relay", {"way": "relay", "held": True}),
        Contender("reliable_jobs sweep", "reliable:Relay", {"way": "sweep"}),
    ),
    measure=measure,
    normal={"rows": 20_000, "slow": 4_000},
    quick={"rows": 2_000, "slow": 600},
    baseline="django-celery-outbox",
)
