"""What presence, statistics and metrics cost the work: jobs per second, and CPU a job of all processes and servers,
with all of it and with nothing of it. The CPU tells what the rates of an unsteady machine cannot."""

from __future__ import annotations

import urllib.request

from benchmarks.harness import WARM, Arena, Benchmark, Contender, Void


def measure(arena: Arena, jobs: int, bundled: int, is_bundled: bool = False, watched: bool = True) -> dict[str, float]:
    """As the benchmark ``work``; then it is made sure that what was to watch did, and nothing else."""
    count = bundled if is_bundled else jobs
    arena.open()
    # As on a site that has counted before: else the first round of counting only notes where to begin.
    arena.sql("INSERT INTO reliable_jobs_statstate (id, rolled) VALUES (1, now() - interval '2 minutes')")
    arena.start_workers()
    with arena.paused():
        arena.refill(count)
        before = sum(arena.cpu_seconds().values())
    rate = arena.drain(count, 60 + count / 20)
    used = sum(arena.cpu_seconds().values()) - before
    arena.wait_until(lambda: not arena.messages(), "an empty queue", 10)
    seen = arena.number("SELECT count(*) FROM reliable_jobs_processseen WHERE seen_at > now() - interval '30 s'")
    counted = arena.number("SELECT count(*) FROM reliable_jobs_statstate WHERE rolled > now() - interval '1 minute'")
    if bool(seen) != watched or (counted and not watched):
        raise Void(f"{seen} processes said that they are there, and the statistics were counted {counted} times")
    if listen := getattr(arena.rival, "listen", ""):
        arena.wait_until(lambda: _counted(listen) == count + WARM, "a metric that has counted all jobs", 10)
    return {"jobs/s": rate, "CPU ms a job": used * 1000 / count}


def _counted(listen: str) -> int:
    """Jobs that have been settled, as the worker's port says."""
    with urllib.request.urlopen(f"http://{listen}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("reliable_jobs_settled_t")))


OFF, ON, PORT, MORE = "nothing", "default: presence, statistics", "and METRICS_LISTEN", "and ten times as often"

BENCHMARK = Benchmark(
    about="a full queue and two warm worker processes, as in 'work', without presence, sweep loop and statistics; with "
    "them, the default; with a port for Prometheus too; with all of it ten times as often as by default. 'bundled' is "
    "the number of jobs for those in bundles of 100, whose ratio is to the bundled ones with nothing",
    contenders=(
        Contender(OFF, "reliable:Unwatched", {"watched": False}),
        Contender(ON, "reliable:Alone"),
        Contender(PORT, "reliable:Measured"),
        Contender(MORE, "reliable:Hastened"),
        Contender(f"bundle: {OFF}", "reliable:UnwatchedBundled", {"is_bundled": True, "watched": False}),
        Contender(f"bundle: {ON}", "reliable:Bundled", {"is_bundled": True}, against=f"bundle: {OFF}"),
        Contender(f"bundle: {PORT}", "reliable:MeasuredBundled", {"is_bundled": True}, against=f"bundle: {OFF}"),
        Contender(f"bundle: {MORE}", "reliable:HastenedBundled", {"is_bundled": True}, against=f"bundle: {OFF}"),
    ),
    measure=measure,
    normal={"jobs": 10_000, "bundled": 30_000},
    quick={"jobs": 800, "bundled": 2_000},
    baseline=OFF,
    rounds=5,
)
