"""What an hour's jobs leave behind in a table that holds many already, with autovacuum as the server has it and with
settings of the table's own: dead rows, sizes, and what a sweep takes meanwhile.

The jobs go through as fast as bundles allow, so that autovacuum has a few minutes for what an hour would give it.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.churn import QUARTERS, TABLES, dead_rows, in_steps, wal
from benchmarks.harness import Arena, Benchmark, Contender
from benchmarks.rivals import Rival

REPEATS = 15
#: Jobs that are enqueued at a time.
STEP = 10_000


def sweeps(rival: Rival) -> list[float]:
    """In the child: milliseconds of several sweeps that find nothing; the first one reads what the last jobs left."""
    from benchmarks.project.celery import app
    from reliable_jobs.sweep.sweeper import sweep

    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        assert sweep(app).idle
        times.append((time.perf_counter() - started) * 1000)
    return times


def measure(arena: Arena, jobs: int, settled: int) -> dict[str, float]:
    arena.open()
    arena.child("benchmarks.sweep:multiply", settled=settled, waiting=0)
    arena.start_workers()
    figures: dict[str, float] = {}
    begun, done, busy, started = wal(arena), 0, 0.0, time.perf_counter()
    for done in in_steps(arena, jobs, min(STEP, jobs // QUARTERS)):
        busy += time.perf_counter() - started
        figures[f"dead rows after {done:,}"] = dead_rows(arena)
        first, *others = arena.child("benchmarks.hour:sweeps")
        figures[f"ms of the first sweep after {done:,}"] = first
        figures[f"ms of a sweep after {done:,}"] = statistics.median(others)
        started = time.perf_counter()
    figures["table MB"] = arena.number(f"SELECT sum(pg_table_size(relid)) {TABLES}") / 1e6
    figures["indexes MB"] = arena.number(f"SELECT sum(pg_indexes_size(relid)) {TABLES}") / 1e6
    figures["autovacuums"] = float(arena.number(f"SELECT sum(autovacuum_count) {TABLES}"))
    return {"jobs/s, enqueued and done": done / busy, "WAL bytes per job": (wal(arena) - begun) / done, **figures}


BENCHMARK = Benchmark(
    about="an hour of 100 jobs a second, in a table that holds a million settled ones and keeps them; at each quarter "
    "the dead rows and the time of a sweep that finds nothing",
    contenders=(
        Contender("autovacuum as the server has it", "reliable:ServersAutovacuum"),
        Contender("autovacuum of its own (default)", "reliable:Bundled"),
    ),
    measure=measure,
    normal={"jobs": 360_000, "settled": 1_000_000},
    quick={"jobs": 4_000, "settled": 2_000},
    baseline="autovacuum as the server has it",
    rounds=1,
)
