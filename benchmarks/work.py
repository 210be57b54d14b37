"""Jobs per second through two worker processes: each job one INSERT."""

from __future__ import annotations

from benchmarks.harness import Arena, Benchmark, Contender


def measure(arena: Arena, jobs: int, slow: int, is_slow: bool = False) -> dict[str, float]:
    """Fill the queue while the warm workers are stopped, let them go, and wait for the last commit."""
    count = slow if is_slow else jobs
    arena.open()
    arena.start_workers()
    with arena.paused():
        arena.refill(count)
    rate = arena.drain(count, 60 + count / 20)
    if arena.rival.messages:
        arena.wait_until(lambda: not arena.messages(), "an empty queue", 10)
    return {"jobs/s": rate}


BENCHMARK = Benchmark(
    about="a full queue and two warm worker processes (celery -c 2, or two processes); from the first effect until all "
    "are committed, then the effects are counted. 'slow' is the number of jobs for those that do fewer than 500/s",
    contenders=(
        Contender("Celery as Django sets it up", "celery:BareCelery", {"is_slow": True}),
        Contender("Celery, connections kept", "celery:KeptCelery"),
        Contender("Celery, kept, atomic body", "celery:KeptCeleryAtomic"),
        Contender("ReliableTask", "reliable:OnCommit"),
        Contender("ReliableTask, prepared statements", "reliable:Prepared"),
        Contender("ReliableTask, DELIVERY_BATCH = 1", "reliable:Alone"),
        Contender("ReliableTask, bundle = 100", "reliable:Bundled"),
        Contender("ReliableTask, atomic = False", "reliable:NonAtomic"),
        Contender("procrastinate", "procrastinate:Procrastinate", {"is_slow": True}),
        Contender("django-tasks-db", "django_tasks:DjangoTasks", {"is_slow": True}),
        Contender("pgqueuer (async)", "pgqueuer:Pgqueuer"),
        Contender("oban (async)", "oban:ObanPy"),
    ),
    measure=measure,
    normal={"jobs": 4000, "slow": 1500},
    quick={"jobs": 800, "slow": 300},
    baseline="Celery as Django sets it up",
)
