"""The scenarios of ``python -m qa.chaos.recovery``."""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from django.db import transaction

from qa.chaos import tasks
from qa.chaos.members import Member
from qa.chaos.recovery import Measure, Scenario, world
from qa.chaos.world import World
from tests.support.harness import wait_until

SCENARIOS: dict[str, Scenario] = {}

#: Bounds, in seconds unless they say otherwise.
WIPED = 120.0
KILLED = 10.0
#: A lease (10), the sweeper's next look (1), and what a busy machine adds.
LEASE_OVER = 20.0
COPIES_PER_LOSS = 5
FIRST_ENQUEUE = 1.0
#: Over the usual time, once the breaker is open.
BEHIND_BREAKER = 0.020
COPIES_WHILE_WAITING = 1.1
PATIENCE = 300.0
#: How long the body takes whose worker is harmed.
BODY = 20.0


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__.replace("_", "-")] = function
    return function


def copies(place: World) -> collections.Counter[str]:
    """How often each job was published, by the word of those who did."""
    records = place.ledger.read().records
    return collections.Counter(job for record in records if record["what"] == "publishes" for job in record["jobs"])


def starts(place: World, job: Any) -> list[dict[str, Any]]:
    return [one for one in place.ledger.read().records if one["what"] == "starts" and one["job"] == str(job.id)]


@scenario
def broker_wiped(options: argparse.Namespace) -> Iterator[Measure]:
    """Under load: other jobs go on coming, a few a second."""
    with world() as place:
        place.add_beat()
        workers = [place.add_worker("first", "work-a"), place.add_worker("second", "work-b")]
        for worker in workers:
            worker.process.wait_for_line(" ready.")
        tasks.book.bulk_delay((f"before {number}", 0.05) for number in range(options.jobs))
        wait_until(lambda: place.depth() > options.jobs * 0.5, "the queue is filled")
        before = place.unfinished() or []
        began = time.monotonic()
        place.broker.server.wipe()
        left = len(before)

        def done() -> bool:
            nonlocal left
            place.tick()
            with transaction.atomic():
                tasks.book.delay(f"meanwhile {uuid.uuid4()}", 0.05)
            open_now = set(place.unfinished(due=False) or ())
            left = len(open_now & set(before))
            return not left

        wait_until(done, f"the {len(before)} jobs finish", PATIENCE, every=0.3)
        took = time.monotonic() - began
        yield Measure(f"broker wiped with {len(before)} jobs open: until all are finished", took, WIPED)
        most = max(copies(place)[job] for job in before)
        yield Measure("… publishes of one job, first one included, at most", most, 1 + COPIES_PER_LOSS, "")


def _runs_again(
    what: str, bound: float, task: Any, harm: Callable[[World, Member, dict[str, Any]], Any], pool: str = "prefork"
) -> Iterator[Measure]:
    """Two workers; the one that has begun the job is harmed; how long until the job begins anew, or is done."""
    with world() as place:
        place.add_beat()
        workers = {name: place.add_worker(name, host, pool=pool) for name, host in (("a", "work-a"), ("b", "work-b"))}
        for worker in workers.values():
            worker.process.wait_for_line(" ready.")
        job = task.delay("again", BODY)
        wait_until(lambda: starts(place, job), "the body begins")
        first = starts(place, job)[0]
        worker = next(worker for worker in workers.values() if first["pid"] in worker.pids())
        began = time.monotonic()
        harm(place, worker, first)

        def runs_or_is_done() -> bool:
            place.tick()
            return len(starts(place, job)) > 1 or place.unfinished(due=False) == []

        wait_until(runs_or_is_done, "the body begins again", PATIENCE)
        again = starts(place, job)[1:]
        took = (again[0]["at"] if again else time.monotonic()) - began
        place.heal()
        yield Measure(f"{what}: until its job {'runs again' if again else 'is done all the same'}", took, bound)
        yield Measure("… publishes of it, first one included", copies(place)[job.id], 1 + COPIES_PER_LOSS, "")


@scenario
def child_killed(options: argparse.Namespace) -> Iterator[Measure]:
    yield from _runs_again(
        "worker child killed", KILLED, tasks.book, lambda place, worker, first: os.kill(first["pid"], signal.SIGKILL)
    )


@scenario
def parent_killed(options: argparse.Namespace) -> Iterator[Measure]:
    for pool, task in (("threads", tasks.book), ("prefork", tasks.book), ("prefork", tasks.call)):
        kind = "an atomic" if task.atomic else "a non-atomic"
        bound = KILLED if task.atomic else LEASE_OVER
        yield from _runs_again(
            f"{pool} worker killed in {kind} body",
            bound,
            task,
            lambda place, worker, first: worker.process.kill9(),
            pool,
        )
    # The orphaned child may end its body.
    yield from _runs_again(
        "prefork worker's parent alone killed in an atomic body",
        BODY + KILLED,
        tasks.book,
        lambda place, worker, first: worker.process.kill9_parent(),
    )


@scenario
def stopped_past_lease(options: argparse.Namespace) -> Iterator[Measure]:
    yield from _runs_again(
        "non-atomic worker stopped", LEASE_OVER, tasks.call, lambda place, worker, first: worker.process.stop()
    )


@scenario
def half_open_network(options: argparse.Namespace) -> Iterator[Measure]:
    def cut_off(place: World, worker: Member, first: dict[str, Any]) -> None:
        for proxy in place.networks[worker.host]:
            proxy.blackhole(True)

    yield from _runs_again("worker cut off in a non-atomic body (half-open)", LEASE_OVER, tasks.call, cut_off)


# --- a broken broker, and what a request notices of it ----------------------------------------------------------------

_ENQUEUE = """
import json, time
import django
django.setup()
from django.db import connection, transaction
from qa.chaos import tasks
connection.ensure_connection()

def enqueue():
    began = time.monotonic()
    with transaction.atomic():
        tasks.book.delay("x")
    return time.monotonic() - began

print(json.dumps([enqueue() for _ in range(60)]))
"""


def _fresh_processes(place: World, number: int) -> tuple[list[float], list[float]]:
    """Seconds of the first enqueue in each of so many fresh processes, and of all later ones."""
    env = place.environment("web")
    first, later = [], []
    for _ in range(number):
        done = subprocess.run([sys.executable, "-c", _ENQUEUE], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        took = json.loads(done.stdout.splitlines()[-1])
        first.append(took[0])
        later += took[1:]
    return first, later


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


@scenario
def broken_broker(options: argparse.Namespace) -> Iterator[Measure]:
    """No worker runs. The request's time is the whole transaction's, on a connection that is there."""
    with world() as place:
        proxy, _ = place.networks["web"]
        first, later = _fresh_processes(place, options.fresh)
        usual = _p99(later)
        yield Measure(f"broker well: slowest first enqueue of {options.fresh} fresh processes", max(first), 1.0)
        yield Measure("… p99 of later ones", usual, 1.0)

        def blackhole(on: bool) -> None:
            proxy.blackhole(on)

        for what, switch in (
            ("refuses", proxy.refuse),
            ("never answers", blackhole),
            ("has its memory alarm", place.broker.server.set_memory_alarm),
        ):
            switch(True)
            try:
                first, later = _fresh_processes(place, options.fresh)
            finally:
                switch(False)
            yield Measure(f"broker {what}: slowest first enqueue", max(first), FIRST_ENQUEUE)
            yield Measure("… p99 behind the open breaker", _p99(later), usual + BEHIND_BREAKER)


# --- a long queue -----------------------------------------------------------------------------------------------------


@scenario
def long_queue(options: argparse.Namespace) -> Iterator[Measure]:
    """All jobs at once, and workers that take minutes for them."""
    threads = 8
    with world() as place:
        place.add_beat()
        workers = [place.add_worker(n, "work-a", pool="threads", concurrency=threads) for n in ("first", "second")]
        for worker in workers:
            worker.process.wait_for_line(" ready.")
        each = options.minutes * 60 * 2 * threads / options.waiting
        began = time.monotonic()
        for start in range(0, options.waiting, 5000):
            number = min(5000, options.waiting - start)
            tasks.book.bulk_delay((f"waits {start + n}", each) for n in range(number))
        wait_until(
            lambda: place.tick() or place.unfinished(due=False) == [],
            f"the {options.waiting} jobs finish",
            options.minutes * 60 * 3 + PATIENCE,
            every=1.0,
        )
        minutes = (time.monotonic() - began) / 60
        counts = copies(place)
        what = f"{options.waiting} jobs behind slow workers ({minutes:.1f} min): publishes per job"
        yield Measure(what, sum(counts.values()) / options.waiting, COPIES_WHILE_WAITING, "")
        yield Measure("… publishes of one job, at most", max(counts.values()), 1 + COPIES_PER_LOSS, "")
