"""Parts per second of a chord beside the same jobs without one; and how soon the body starts after the last part."""

from __future__ import annotations

import time

from benchmarks.harness import Arena, Benchmark, Contender
from benchmarks.rivals import Rival

#: The body's task notes when it began, as an effect does.
NOTE_TIME = "ALTER TABLE benchmark_order ADD COLUMN at timestamptz NOT NULL DEFAULT clock_timestamp()"


def enqueue(rival: Rival, count: int) -> float:
    """In the child: one chord, or group, of so many jobs. Returns the seconds that its call took; all its messages are
    in the queue then."""
    began = time.monotonic()
    rival.fill(range(count))
    took = time.monotonic() - began
    rival.publish()
    return took


def measure(arena: Arena, jobs: int, has_body: bool = False) -> dict[str, float]:
    """Fill the queue while the warm workers are stopped, let them go, and wait for the last part and for the body."""
    arena.open()
    arena.sql(NOTE_TIME)
    arena.start_workers()
    with arena.paused():
        arena.sql("TRUNCATE benchmark_order")
        took = arena.refill(jobs, "benchmarks.chord:enqueue")
    figures = {"parts/s": arena.drain(jobs, 60 + jobs / 20)}
    if has_body:
        after = "SELECT EXTRACT(epoch FROM at - (SELECT max(at) FROM benchmark_effect)) FROM benchmark_order"
        body = arena.wait_until(lambda: arena.sql(f"{after} WHERE number = {jobs}"), "the body with all results", 30)
        figures["body, ms after the last part"] = float(body[0][0]) * 1000
    figures["enqueued/s"] = jobs / took
    if arena.rival.stored:
        size = "SELECT avg(length(payload) + length(envelope)) FROM reliable_jobs_job WHERE task LIKE '%.part'"
        figures["bytes of a part"] = float(arena.sql(size)[0][0])
    return figures


BENCHMARK = Benchmark(
    about="one chord, or one group, of many small jobs, all in the queue, and two warm worker processes; from the "
    "first effect until all are committed. The body is called with all results",
    contenders=(
        Contender("ReliableTask, no chord", "chords:Parts"),
        Contender("ReliableTask, chord", "chords:Chord", {"has_body": True}),
        Contender("Celery, kept, no chord", "chords:CeleryParts"),
        Contender(
            "Celery, kept, chord on Redis", "chords:CeleryChord", {"has_body": True}, against="Celery, kept, no chord"
        ),
    ),
    measure=measure,
    normal={"jobs": 10_000},
    quick={"jobs": 800},
    baseline="ReliableTask, no chord",
)
