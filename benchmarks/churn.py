"""What stays behind: dead rows, size of tables and indexes, and WAL, while jobs are enqueued, done and deleted in turn.

Measured over all tables of the database but for the effects. The WAL is the server's: anything else that writes on it
at the same time is counted too.
"""

from __future__ import annotations

from benchmarks.harness import WARM, Arena, Benchmark, Contender

QUARTERS = 4

TABLES = "FROM pg_stat_user_tables WHERE relname NOT LIKE 'benchmark_%%'"


def measure(arena: Arena, jobs: int, step: int) -> dict[str, float]:
    """Enqueue ``step`` jobs, wait until they are done, prune; again until ``jobs`` are. Each effect is counted."""
    arena.open()
    arena.start_workers()
    figures: dict[str, float] = {}
    begun = arena.sql("SELECT pg_current_wal_lsn()")[0][0]
    steps = max(QUARTERS, jobs // step)
    for number in range(1, steps + 1):
        with arena.paused():
            arena.sql("TRUNCATE benchmark_effect RESTART IDENTITY")
            arena.child("benchmarks.child:fill", count=step)
        arena.wait_for_effects(step, 60 + step / 10)
        arena.check_effects(step)
        arena.child("benchmarks.child:prune")
        if number % (steps // QUARTERS) == 0 and number // (steps // QUARTERS) <= QUARTERS:
            arena.wait_for_statistics(WARM + number * step)
            after = f"after {number * step:,}"
            figures[f"dead rows {after}"] = float(arena.number(f"SELECT coalesce(sum(n_dead_tup), 0) {TABLES}"))
            figures[f"tables MB {after}"] = arena.number(f"SELECT sum(pg_table_size(relid)) {TABLES}") / 1e6
            figures[f"indexes MB {after}"] = arena.number(f"SELECT sum(pg_indexes_size(relid)) {TABLES}") / 1e6
    written = arena.sql("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s::pg_lsn)", begun)[0][0]
    return {"WAL bytes per job": float(written) / (steps * step), **figures}


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
