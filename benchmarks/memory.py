"""Resident memory of the processes of a site, at each quarter of many jobs: does something grow with what was done?"""

from __future__ import annotations

import sys
import tempfile

from benchmarks import machine
from benchmarks.churn import in_steps
from benchmarks.harness import Arena, Benchmark, Contender


def measure(arena: Arena, jobs: int, step: int) -> dict[str, float]:
    arena.open()
    arena.start_workers()
    with tempfile.TemporaryDirectory() as place:
        beat = [sys.executable, "-m", "celery", "-A", "benchmarks.project.celery", "beat", "-s", f"{place}/schedule"]
        arena.start([beat])
        figures: dict[str, float] = {}
        for done in in_steps(arena, jobs, step):
            figures |= {f"MB of {who} after {done:,}": size for who, size in _sizes(arena).items()}
        arena.end_processes()
    return figures


def _sizes(arena: Arena) -> dict[str, float]:
    """Megabytes of the worker, its largest child, the relay if there is one, and beat."""
    names = ["worker", *["relay"] * len(arena.rival.relays()), "beat"]
    found: dict[str, float] = {}
    for name, leader in zip(names, arena.alive(), strict=True):
        sizes = machine.memory(leader)
        found[name] = sizes.pop(leader)
        if sizes:
            found[f"largest child of {name}"] = max(sizes.values())
    return found


BENCHMARK = Benchmark(
    about="a worker with two children, beat, and a relay where there is one: the resident memory of each, shared pages "
    "included, at each quarter of the jobs",
    contenders=(
        Contender("Celery, connections kept", "celery:KeptCelery"),
        Contender("ReliableTask", "reliable:OnCommit"),
        Contender("ReliableTask by relay", "reliable:Relay"),
    ),
    measure=measure,
    normal={"jobs": 100_000, "step": 5_000},
    quick={"jobs": 800, "step": 200},
    baseline="Celery, connections kept",
    rounds=1,
)
