"""Jobs per second of one call that enqueues thousands, until they are committed."""

from __future__ import annotations

import time

from benchmarks.harness import Arena, Benchmark, Contender
from benchmarks.rivals import Rival


def enqueue_many(rival: Rival, count: int) -> float:
    """In the child: seconds for the one call. Connecting and importing is done by a call for a single job before it."""
    rival.bulk(1)
    started = time.perf_counter()
    rival.bulk(count)
    return time.perf_counter() - started


def measure(arena: Arena, few: int, many: int, only_few: bool = False) -> dict[str, float]:
    figures = {}
    for count in (few,) if only_few else (few, many):
        arena.open()
        seconds = arena.child("benchmarks.bulk:enqueue_many", count=count)
        if arena.rival.stored:
            arena.require("stored jobs", arena.number(arena.rival.stored), count + 1)
        else:
            arena.require("messages", arena.messages(), count + 1)
        figures[f"jobs/s of {count:,}"] = count / seconds
        arena.drop()
    return figures


BENCHMARK = Benchmark(
    about="one call, one transaction (Celery: a loop of apply_async, confirmed), one process; then rows or messages "
    "are counted",
    contenders=(
        Contender("procrastinate batch_defer", "procrastinate:Procrastinate"),
        Contender("ReliableTask.bulk_delay", "reliable:OnCommit"),
        Contender("ReliableTask.bulk_delay, relay", "reliable:Relay"),
        Contender("pgqueuer enqueue", "pgqueuer:Pgqueuer"),
        Contender("oban enqueue_many", "oban:ObanPy", {"only_few": True}),
        Contender("awa-pg enqueue_many_copy", "awa:AwaCopy"),
        Contender("Celery, loop, confirmed", "celery:BareCelery", {"only_few": True}),
    ),
    measure=measure,
    normal={"few": 10_000, "many": 100_000},
    quick={"few": 2_000, "many": 10_000},
    baseline="procrastinate batch_defer",
    rounds=2,
)
