"""Milliseconds from the commit that enqueued a job to the commit of its effect, at a steady rate that is far below what
the contenders can do."""

from __future__ import annotations

import statistics
import threading
import time

import psycopg

from benchmarks.harness import Arena, Benchmark, Contender
from benchmarks.rivals import Rival

#: PostgreSQL delivers it when the effect's transaction has committed.
TELL = """
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_notify(''effects'', NEW.number::text); RETURN NULL; END';
CREATE TRIGGER tell AFTER INSERT ON benchmark_effect FOR EACH ROW EXECUTE FUNCTION tell();
"""


def produce(rival: Rival, rate: int, seconds: float) -> list[float]:
    """In the child: orders with one job each at fixed intervals. Returns the time of each order's commit."""
    from django.db import transaction

    from benchmarks.project.models import Order

    commits: list[float] = []
    begun = time.time() + 0.2
    for number in range(int(rate * seconds)):
        time.sleep(max(0.0, begun + number / rate - time.time()))
        with transaction.atomic():
            # Registered first, so that it runs before whatever the contender does after the commit.
            transaction.on_commit(lambda: commits.append(time.time()))
            Order.objects.create(number=number)
            rival.enqueue(number)
    return commits


class Listener:
    """Notes when each effect was committed, in a thread of its own."""

    def __init__(self, arena: Arena) -> None:
        self.seen: dict[int, float] = {}
        self.twice = 0
        self._connection = psycopg.connect(arena.environment["DATABASE_URL"], autocommit=True)
        self._connection.execute("LISTEN effects")
        self._stop = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop:
            for notice in self._connection.notifies(timeout=0.2):
                now = time.time()
                self.twice += int(notice.payload) in self.seen
                self.seen[int(notice.payload)] = now

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self._connection.close()


def measure(arena: Arena, rates: tuple[int, ...], seconds: float) -> dict[str, float]:
    arena.open()
    arena.start_workers()
    arena.sql(TELL)
    figures = {}
    for rate in rates:
        arena.sql("TRUNCATE benchmark_effect RESTART IDENTITY")
        listener = Listener(arena)
        try:
            commits = arena.child("benchmarks.latency:produce", rate=rate, seconds=seconds)
            arena.wait_for_effects(len(commits), 30)
            arena.check_effects(len(commits))
        finally:
            listener.close()
        took = [(listener.seen[number] - commit) * 1000 for number, commit in enumerate(commits)]
        for percent in (50, 95, 99):
            figures[f"p{percent} ms at {rate}/s"] = statistics.quantiles(took, n=100, method="inclusive")[percent - 1]
    return figures


BENCHMARK = Benchmark(
    about="orders with one job each at a fixed rate, idle workers; from after the order's commit to the notification "
    "that the effect's commit releases",
    contenders=(
        Contender("Celery as Django sets it up", "celery:BareCelery"),
        Contender("Celery, connections kept", "celery:KeptCelery"),
        Contender("ReliableTask on commit", "reliable:OnCommit"),
        Contender("ReliableTask on commit, DELIVERY_BATCH = 1", "reliable:Alone"),
        Contender("ReliableTask by relay", "reliable:Relay"),
        Contender("procrastinate", "procrastinate:Procrastinate"),
    ),
    measure=measure,
    normal={"rates": (10, 100), "seconds": 7},
    quick={"rates": (10, 100), "seconds": 2},
    baseline="Celery, connections kept",
    rounds=2,
)
