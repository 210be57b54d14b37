"""Seconds that short jobs wait behind long ones of the same task: what is lost where several share a message."""

from __future__ import annotations

from benchmarks.harness import Arena, Benchmark, Contender
from benchmarks.rivals.reliable import LONG

WAITED = f"""
    SELECT percentile_cont({{share}}) WITHIN GROUP (
        ORDER BY EXTRACT(epoch FROM at - (SELECT min(at) FROM benchmark_effect)))
    FROM benchmark_effect WHERE number >= {LONG}
"""


def measure(arena: Arena, jobs: int) -> dict[str, float]:
    """Fill the queue, the long ones first, while the warm workers are stopped, and let them go."""
    arena.open()
    arena.start_workers()
    with arena.paused():
        arena.refill(LONG + jobs)
    arena.drain(LONG + jobs, 300)
    return {f"p{percent} wait in s": float(arena.sql(WAITED.format(share=percent / 100))[0][0]) for percent in (50, 95)}


BENCHMARK = Benchmark(
    about=f"jobs of 5 ms behind {LONG} of 5 s, of one task and in one queue, and two warm worker processes; from the "
    "first effect until a job has written its own, which it does first",
    contenders=(
        Contender("ReliableTask, DELIVERY_BATCH = 1", "reliable:MixedAlone"),
        Contender("ReliableTask", "reliable:Mixed"),
    ),
    measure=measure,
    normal={"jobs": 1000},
    quick={"jobs": 100},
    baseline="ReliableTask, DELIVERY_BATCH = 1",
)
