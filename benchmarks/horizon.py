"""What a long report does to the workers: jobs per second while three old snapshots keep every dead row alive.

A table that is polled for work reads past the rows of all jobs that were done since; one that is only asked for rows by
their keys should not notice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg

from benchmarks.harness import WARM, Arena, Benchmark, Contender

SNAPSHOTS = 3


@contextlib.contextmanager
def held_horizon(arena: Arena) -> Iterator[None]:
    """Three transactions that begin one after the other and see their snapshots' rows until the end of the block."""
    with contextlib.ExitStack() as stack:
        for _ in range(SNAPSHOTS):
            connection = stack.enter_context(psycopg.connect(arena.environment["DATABASE_URL"]))
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("SELECT count(*) FROM benchmark_order")
        yield


def measure(arena: Arena, jobs: int, slow: int, held: bool, is_slow: bool = False) -> dict[str, float]:
    count = slow if is_slow else jobs
    arena.open()
    arena.start_workers()
    with contextlib.ExitStack() as stack:
        with arena.paused():
            if held:
                stack.enter_context(held_horizon(arena))
            arena.refill(count)
        rate = arena.drain(count, 120 + count / 10)
        last = arena.sql(
            "SELECT extract(epoch FROM max(at) - min(at))::float FROM"
            " (SELECT at FROM benchmark_effect ORDER BY at DESC LIMIT %s) AS last",
            count // 4,
        )[0][0]
        arena.wait_for_statistics(WARM + count)
        dead = arena.number("SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables")
    return {"jobs/s": rate, "jobs/s of the last quarter": count // 4 / last, "dead rows": float(dead)}


def _pair(label: str, rival: str, **options: bool) -> tuple[Contender, Contender]:
    return (
        Contender(label, rival, {"held": False, **options}),
        Contender(f"{label}, horizon held", rival, {"held": True, **options}, against=label),
    )


BENCHMARK = Benchmark(
    about="as 'work', without and with three transactions that hold a snapshot from before the filling to the end; "
    "dead rows in all tables at the end",
    contenders=(
        *_pair("ReliableTask", "reliable:OnCommit"),
        *_pair("procrastinate", "procrastinate:Procrastinate", is_slow=True),
        *_pair("pgqueuer (async)", "pgqueuer:Pgqueuer"),
    ),
    measure=measure,
    normal={"jobs": 6_000, "slow": 3_000},
    quick={"jobs": 1_000, "slow": 500},
    baseline="ReliableTask",
    rounds=2,
)
