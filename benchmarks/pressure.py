"""Throughput before, during and after pressure: a pinned horizon, bursts, a deep backlog, and mixed priorities.

What the public benchmarks of job queues show beside faults. Each shape has a database of its own, and jobs that come at
a steady rate, whatever the workers can do: a contender that can't keep up is seen to fall behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.harness import Arena, Benchmark, Contender, Void
from benchmarks.horizon import held_horizon
from benchmarks.rivals import Rival

#: Seconds between two arrivals of jobs.
TICK = 0.1
#: The priorities of jobs that may wait, and of those that must not.
LOW, HIGH = 0, 9
#: Seconds for the child that enqueues to start.
START = 8.0
#: Seconds from the last arrival in which the jobs that are left may be done.
PATIENCE = 60.0
#: Between two bursts, the rate is so much of the base rate; and so much in a burst, for so many seconds.
BURST_EVERY, BURST_LONG, BURST_LOW, BURST_HIGH = 10.0, 2.0, 0.25, 3.0


@dataclasses.dataclass(frozen=True)
class Phase:
    name: str
    seconds: float
    #: Jobs per second at a moment of the phase.
    rate: Callable[[float], float]
    #: Jobs of the lowest priority that are all there at its beginning.
    backlog: int = 0
    #: Whether old snapshots are held during it.
    held: bool = False


#: When so many jobs of that priority are enqueued, in seconds from the beginning.
Arrival = tuple[float, int, int]


def arrivals(phases: list[Phase], priority: int) -> Iterator[Arrival]:
    """The backlogs, and the others with ``priority``."""
    begun, owed = 0.0, 0.0
    for phase in phases:
        if phase.backlog:
            yield begun, phase.backlog, LOW
        for tick in range(round(phase.seconds / TICK)):
            owed += phase.rate(tick * TICK) * TICK
            if owed >= 1:
                yield begun + tick * TICK, int(owed), priority
                owed -= int(owed)
        begun += phase.seconds


def produce(rival: Rival, arrivals: list[Arrival], begun: float) -> float:
    """In the child: enqueue what arrives. Returns by how many seconds it was late at most.

    Args:
        begun: the time that the arrivals count from.
    """
    number, late = 0, 0.0
    for offset, count, priority in arrivals:
        time.sleep(max(0.0, begun + offset - time.time()))
        rival.enqueue_many(range(number, number + count), priority)
        late = max(late, time.time() - begun - offset)
        number += count
    return late


def measure(
    arena: Arena, rate: int, calm: float, pinned: float, bursts: float, deep: int, drain: float
) -> dict[str, float]:
    def steady(share: float) -> Callable[[float], float]:
        return lambda moment: share * rate

    def bursting(moment: float) -> float:
        return rate * (BURST_HIGH if moment % BURST_EVERY < BURST_LONG else BURST_LOW)

    def shape(seconds: float, share: float, during: Phase) -> list[Phase]:
        return [Phase("before", seconds, steady(share)), during, Phase("after", seconds, steady(share))]

    shapes = {
        "horizon": shape(calm, 1, Phase("during", pinned, steady(1), held=True)),
        "bursts": shape(calm, 0.5, Phase("during", bursts, bursting)),
        "backlog": shape(calm, 0.25, Phase("during", drain, steady(0.25), backlog=deep)),
        "priorities": shape(calm, 0.05, Phase("during", drain, steady(0.05), backlog=deep)),
    }
    figures: dict[str, float] = {}
    for name, phases in shapes.items():
        found = under_pressure(arena, phases, HIGH if name == "priorities" else LOW)
        figures |= {f"{name}: {figure}": value for figure, value in found.items()}
        arena.drop()
    return figures


def under_pressure(arena: Arena, phases: list[Phase], priority: int) -> dict[str, float]:
    arena.open()
    arena.start_workers()
    arena.sql("TRUNCATE benchmark_effect RESTART IDENTITY")
    coming = list(arrivals(phases, priority))
    ends = list(itertools.accumulate(phase.seconds for phase in phases))
    begun = time.time() + START
    dead = None
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(arena.child, "benchmarks.pressure:produce", arrivals=coming, begun=begun)
        _sleep_until(begun)
        for phase, end in zip(phases, ends, strict=True):
            with held_horizon(arena) if phase.held else contextlib.nullcontext():
                _sleep_until(begun + end)
                if phase.held:
                    dead = arena.number("SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables")
        figures = {"s too late, at most": float(late.result())}
    if dead is not None:
        figures["dead rows"] = float(dead)
    return _figures(arena, phases, coming, begun) | figures


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


def _figures(arena: Arena, phases: list[Phase], coming: list[Arrival], begun: float) -> dict[str, float]:
    """Effects per second of each phase, and what the jobs that came in it have waited for theirs."""
    due = [begun + offset for offset, count, _ in coming for _ in range(count)]
    urgent = [priority == coming[-1][2] for _, count, priority in coming for _ in range(count)]
    deadline = time.time() + PATIENCE
    while (done := arena.number("SELECT count(*) FROM benchmark_effect")) < len(due) and time.time() < deadline:
        time.sleep(0.5)
    arena.check_processes()
    effects = dict(arena.sql("SELECT number, extract(epoch FROM at)::float FROM benchmark_effect"))
    if len(effects) != arena.number("SELECT count(*) FROM benchmark_effect"):
        raise Void("a job was done twice")
    figures: dict[str, float] = {}
    since = begun
    for phase in phases:
        until = since + phase.seconds
        figures[f"jobs/s {phase.name}"] = sum(since <= at < until for at in effects.values()) / phase.seconds
        # One that has not been done has waited until now.
        waited = [
            effects.get(number, time.time()) - moment
            for number, moment in enumerate(due)
            if since <= moment < until and urgent[number]
        ]
        p50, p99 = (statistics.quantiles(waited, n=100, method="inclusive")[percent - 1] for percent in (50, 99))
        figures |= {f"p50 wait {phase.name}, s": p50, f"p99 wait {phase.name}, s": p99}
        since = until
    return figures | {"not done": float(len(due) - done)}


BENCHMARK = Benchmark(
    about="jobs that come ten times a second by each contender's bulk call, 'rate' a second in all, before two warm "
    "worker processes; their wait is from the moment at which they were to come until their effect is written. "
    "'horizon': three transactions hold old snapshots during the middle phase. 'bursts': half the rate, then every 10 "
    "s two seconds of three times the rate and eight of a quarter. 'backlog': a quarter of the rate, and 'deep' jobs "
    "come at once. 'priorities': a twentieth of the rate of the highest priority, whose waits are told, and 'deep' of "
    "the lowest come at once. 'not done' are jobs without an effect a minute after the last one came",
    contenders=(
        Contender("Celery, connections kept", "celery:KeptCeleryPriorities"),
        Contender("ReliableTask", "reliable:Priorities"),
        Contender("procrastinate", "procrastinate:Procrastinate"),
        Contender("pgqueuer (async)", "pgqueuer:Pgqueuer"),
    ),
    measure=measure,
    normal={"rate": 400, "calm": 30.0, "pinned": 1200.0, "bursts": 60.0, "deep": 20_000, "drain": 60.0},
    quick={"rate": 50, "calm": 3.0, "pinned": 5.0, "bursts": 10.0, "deep": 300, "drain": 5.0},
    baseline="Celery, connections kept",
    rounds=1,
)
