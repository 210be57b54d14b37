"""What the table's size does to a sweep and to the admin's first page, in milliseconds."""

from __future__ import annotations

import functools
import statistics
import time

from benchmarks.harness import Arena, Benchmark, Contender
from benchmarks.rivals import NotRun, Rival

REPEATS = 15


def multiply(rival: Rival, settled: int, waiting: int) -> None:
    """In the child: enqueue one job and copy its row, so that the copies have whatever columns a job has."""
    from django.db import connection, transaction

    from reliable_jobs.models import Job

    with transaction.atomic():
        rival.enqueue(0)
    ends = {
        "id": "gen_random_uuid()",
        "sends": "1",
        "created_at": "at",
        "due_at": "at",
        "check_at": "at + interval '15 s'",
    }
    done = {**ends, "status": "'succeeded'", "epoch": "2", "started_at": "at", "finished_at": "at + interval '1 s'"}
    for count, values in (
        (settled, done),
        (waiting, {**ends, "check_at": "clock_timestamp() + interval '1 day'"}),
    ):
        columns = [field.column for field in Job._meta.concrete_fields if field.column]
        taken = ", ".join(values.get(column, f'"{column}"') for column in columns)
        named = ", ".join(f'"{column}"' for column in columns)
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO reliable_jobs_job ({named}) SELECT {taken} FROM (SELECT * FROM reliable_jobs_job LIMIT 1)"
                " AS one, (SELECT clock_timestamp() - interval '6 days' + n * (interval '6 days' / %s) AS at"
                " FROM generate_series(1, %s) AS n) AS numbered",
                [max(count, 1), count],
            )
    Job.objects.filter(sends=0).delete()
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE reliable_jobs_job")


def look(rival: Rival) -> dict[str, float]:
    """In the child: the median of several sweeps, and of several requests for the first page of the jobs' admin."""
    from django.contrib.auth.models import User
    from django.test import Client
    from django.urls import reverse

    from benchmarks.project.celery import app
    from reliable_jobs.sweep.sweeper import sweep

    client = Client()
    client.force_login(User.objects.create_superuser("benchmark"))
    address = reverse("admin:reliable_jobs_job_changelist")

    def page() -> None:
        assert client.get(address).status_code == 200

    def once() -> None:
        # Nothing is due, overdue or lost: what a sweep costs that finds nothing.
        assert sweep(app).idle

    figures = {}
    for name, call in (("ms per sweep", once), ("ms per first page of the admin", page)):
        call()
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            call()
            times.append((time.perf_counter() - started) * 1000)
        figures[name] = statistics.median(times)
    return figures


def _fill(arena: Arena, settled: int, waiting: int) -> None:
    arena.child("benchmarks.sweep:multiply", settled=settled, waiting=waiting)


@functools.cache
def _filled(settled: int, waiting: int) -> functools.partial[None]:
    return functools.partial(_fill, settled=settled, waiting=waiting)


def measure(arena: Arena, largest: int, settled: int = 0, waiting: int = 0) -> dict[str, float]:
    if settled > largest:
        raise NotRun(f"only up to {largest:,} this time")
    arena.open(_filled(settled, waiting) if settled or waiting else None)
    figures: dict[str, float] = arena.child("benchmarks.sweep:look")
    arena.require("jobs", arena.number("SELECT count(*) FROM reliable_jobs_job"), settled + waiting)
    arena.require("messages", arena.messages(), 0)
    return figures


BENCHMARK = Benchmark(
    about="one sweep that finds nothing to do, and the first page of the admin, by what the table holds",
    contenders=(
        Contender("an empty table", "reliable:Relay"),
        Contender("1,000 settled", "reliable:Relay", {"settled": 1_000}),
        Contender("100,000 settled", "reliable:Relay", {"settled": 100_000}),
        Contender("1,000,000 settled", "reliable:Relay", {"settled": 1_000_000}),
        Contender("100,000 sent and waiting", "reliable:Relay", {"waiting": 100_000}),
    ),
    measure=measure,
    normal={"largest": 1_000_000},
    quick={"largest": 100_000},
    baseline="1,000 settled",  # the first to fill a page of the admin
    rounds=1,
)
