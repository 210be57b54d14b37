"""How the rates grow with the number of worker processes and of producers, and what the machine is busy with meanwhile.

Where it stops growing it waits for something: for a processor (idle near 0), for the disk (idle, and of it much waiting
for the disk), or for a lock or an answer (idle, and no disk).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import time

from benchmarks import machine
from benchmarks.enqueue import WARM_UP, placing
from benchmarks.harness import Arena, Benchmark, Contender
from benchmarks.rivals import Rival

#: Seconds for the producers to start and to become warm.
PATIENCE = 120.0


def produce(rival: Rival, first: int, count: int, gate: int) -> tuple[float, float]:
    """In the child: orders with one job each, each in a transaction. Returns when the clock was started and stopped.

    Args:
        gate: a port of this machine. It hangs up when all producers are warm and have called.
    """
    place = placing(rival)
    for number in range(first - WARM_UP, first):
        place(number)
    with socket.create_connection(("127.0.0.1", gate)) as call:
        call.recv(1)
    started = time.time()
    for number in range(first, first + count):
        place(number)
    return started, time.time()


def measure(
    arena: Arena, jobs: int, workers: tuple[int, ...], orders: int, producers: tuple[int, ...]
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for processes in workers:
        figures |= {f"{name}, processes: {processes}": value for name, value in _work(arena, jobs, processes).items()}
        arena.drop()
    for number in producers:
        figures[f"orders/s, producers: {number}"] = _enqueue(arena, orders, number)
        arena.drop()
    return figures


def _work(arena: Arena, jobs: int, processes: int) -> dict[str, float]:
    arena.open()
    arena.rival.processes = processes
    arena.start_workers()
    with arena.paused():
        arena.refill(jobs)
        before, idle, begun = arena.cpu_seconds(), machine.idle_seconds(), time.monotonic()
    finished = arena.wait_for_effects(jobs, 60 + jobs / 20)
    took = time.monotonic() - begun
    used = {group: seconds - before[group] for group, seconds in arena.cpu_seconds().items()}
    rested, for_disk = (now - then for now, then in zip(machine.idle_seconds(), idle, strict=True))
    rate = arena.rate(jobs, finished)
    return {
        "jobs/s": rate,
        "jobs per second of a processor": jobs / sum(used.values()),
        **{f"CPU ms a job, {group}": seconds * 1000 / jobs for group, seconds in used.items()},
        "processors idle": rested / took,
        "of it waiting for the disk": for_disk / took,
    }


def _enqueue(arena: Arena, orders: int, producers: int) -> float:
    arena.open()
    each = orders // producers
    with concurrent.futures.ThreadPoolExecutor(producers) as pool:
        with contextlib.ExitStack() as hangs_up, socket.create_server(("127.0.0.1", 0), backlog=producers) as gate:
            gate.settimeout(PATIENCE)
            about = {"count": each, "gate": gate.getsockname()[1]}
            firsts = range(WARM_UP, producers * (each + WARM_UP), each + WARM_UP)
            calls = [pool.submit(arena.child, "benchmarks.scale:produce", first=first, **about) for first in firsts]
            for _ in firsts:
                hangs_up.enter_context(gate.accept()[0])
        spans = [call.result() for call in calls]
    wanted = producers * (each + WARM_UP)
    arena.require("orders", arena.number("SELECT count(*) FROM benchmark_order"), wanted)
    if arena.rival.stored:
        arena.require("stored jobs", arena.number(arena.rival.stored), wanted)
    return float(producers * each / (max(end for _, end in spans) - min(start for start, _ in spans)))


BENCHMARK = Benchmark(
    about="a full queue and so many warm worker processes, as in 'work'; then so many producers, each with orders of "
    "one job, no worker running. A processor's second is one of workers, PostgreSQL and RabbitMQ together, and "
    "'processors idle' the number of them that rest on average. Those that are async enqueue in no view",
    contenders=(
        Contender("Celery, connections kept", "celery:KeptCelery"),
        Contender("ReliableTask", "reliable:OnCommit"),
        Contender("ReliableTask by relay", "reliable:Relay", {"workers": ()}),
        Contender("procrastinate", "procrastinate:Procrastinate"),
        Contender("pgqueuer (async)", "pgqueuer:Pgqueuer", {"producers": ()}),
        Contender("oban (async)", "oban:ObanPy", {"producers": ()}),
    ),
    measure=measure,
    normal={"jobs": 3000, "workers": (1, 2, 4, 8), "orders": 1600, "producers": (1, 4, 16)},
    quick={"jobs": 400, "workers": (1, 2), "orders": 160, "producers": (1, 4)},
    baseline="Celery, connections kept",
    rounds=1,
)
