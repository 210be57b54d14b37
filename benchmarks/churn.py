"""What stays behind: dead rows, size of tables and indexes, and WAL, while jobs are enqueued, done and deleted in turn.

Measured over all tables of the database but for the effects. The WAL is the server's: anything else that writes on it
at the same time is counted too.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import WARM, Arena, Benchmark, Contender

QUARTERS = 4

TABLES = "FROM pg_stat_user_tables WHERE relname NOT LIKE 'benchmark_%%'"


def in_steps(arena: Arena, jobs: int, step: int, then: str = "") -> Iterator[int]:
    """Enqueue ``step`` jobs and wait until they are done, until ``jobs`` are; each effect is counted. Gives how many
    are done at each quarter.

    Args:
        then: what a child does after each step.
    """
    steps = max(QUARTERS, jobs // step)
    for number in range(1, steps + 1):
        with arena.paused():
            arena.sql("TRUNCATE benchmark_effect RESTART IDENTITY")
            arena.child("benchmarks.child:fill", count=step)
        arena.wait_for_effects(step, 60 + step / 10)
        arena.check_effects(step)
        if then:
            arena.child(then)
        if number % (steps // QUARTERS) == 0 and number // (steps // QUARTERS) <= QUARTERS:
            arena.wait_for_statistics(WARM + number * step)
            yield number * step


def measure(arena: Arena, jobs: int, step: int) -> dict[str, float]:
    arena.open()
    arena.start_workers()
    figures: dict[str, float] = {}
    begun, done = wal(arena), 0
    for done in in_steps(arena, jobs, step, then="benchmarks.child:prune"):
        figures[f"dead rows after {done:,}"] = dead_rows(arena)
        figures[f"tables MB after {done:,}"] = arena.number(f"SELECT sum(pg_table_size(relid)) {TABLES}") / 1e6
        figures[f"indexes MB after {done:,}"] = arena.number(f"SELECT sum(pg_indexes_size(relid)) {TABLES}") / 1e6
    return {"WAL bytes per job": (wal(arena) - begun) / done, **figures}


def wal(arena: Arena) -> int:
    """Bytes that the server has written to its log."""
    return arena.number("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")


def dead_rows(arena: Arena) -> float:
    return float(arena.number(f"SELECT coalesce(sum(n_dead_tup), 0) {TABLES}"))


BENCHMARK = Benchmark(
    about="jobs enqueued, done and pruned in steps; at each quarter of them the dead rows, and the size of the tables "
    "and of their indexes; autovacuum as the server has it (see the head)",
    contenders=(
        Contender("ReliableTask", "reliable:PrunedAtOnce"),
        Contender("procrastinate", "procrastinate:Procrastinate"),
        Contender("pgqueuer (async)", "pgqueuer:Pgqueuer"),
    ),
    measure=measure,
    normal={"jobs": 16_000, "step": 2_000},
    quick={"jobs": 800, "step": 200},
    baseline="procrastinate",
    rounds=1,
)
