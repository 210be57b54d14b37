"""What the admin's pages cost with 20,000 and with 1,000,000 settled jobs: python -m benchmarks.admin_pages

For the first page, every filter, every search, a job's page, and requeueing 10,000: time in milliseconds (median of
several requests through Django's test client, templates included), the same at both sizes, and the ratio. The slowest
statement of each page is explained with --plans. Makes a database of its own on the server of DATABASE_URL (PostgreSQL)
and drops it afterwards unless --keep is given.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

SERVER = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
REPEATS = 7
WAITING = 2000
#: The newest so many have failed, crashed, been requeued and so on; before them everything has succeeded. So each page
#: lists as many jobs at both sizes, and only what lies behind them differs.
MIXED = 20_000

FILL = """
INSERT INTO reliable_jobs_job (
    id, task, queue, status, reason, due_at, check_at, sends, epoch, content_version, failures, crashes, interruptions,
    requeues, key, key_forever, payload, content_type, content_encoding, envelope, parent_id, result, error, traceback,
    worker, created_at, started_at, finished_at
)
SELECT
    md5(n::text)::uuid,
    'shop.tasks.task_' || (n %% 20),
    'queue_' || (n %% 5),
    CASE WHEN plain THEN 'succeeded' WHEN n %% 50 = 0 THEN 'failed' WHEN n %% 211 = 0 THEN 'cancelled'
        WHEN n %% 503 = 0 THEN 'expired' ELSE 'succeeded' END,
    CASE WHEN plain THEN '' WHEN n %% 100 = 0 THEN 'parked' WHEN n %% 50 = 0 THEN 'error' ELSE '' END,
    at, at + interval '15 s', 1, 2, 0,
    CASE WHEN n %% 50 = 0 AND NOT plain THEN 3 ELSE 0 END,
    CASE WHEN n %% 97 = 0 AND NOT plain THEN 1 ELSE 0 END, 0,
    CASE WHEN n %% 71 = 0 AND NOT plain THEN 1 ELSE 0 END,
    CASE WHEN n %% 10 = 0 THEN 'key-' || n END, false,
    convert_to('[[' || n || ', "some arguments that a job may well have"], {}, {}]', 'utf8'),
    'application/json', 'utf-8',
    '{"v": 1, "headers": {"task": "shop.tasks.task", "filler": "' || repeat(md5(n::text), 20) || '"}}',
    CASE WHEN n %% 7 = 0 THEN md5((n / 2)::text)::uuid END,
    '"done"',
    CASE WHEN n %% 50 = 0 AND NOT plain THEN 'ValueError: no such order ' || n ELSE '' END,
    CASE WHEN n %% 50 = 0 AND NOT plain THEN repeat('File "shop/tasks.py", line 17' || chr(10), 30) ELSE '' END,
    'celery@host pid ' || (n %% 40), at, at, at + interval '2 s'
FROM (SELECT n, n <= %(rows)s - %(mixed)s AS plain, now() - interval '6 days' + n * (interval '6 days' / %(rows)s) AS at
      FROM generate_series(1, %(rows)s) AS n) AS numbered
"""

UNFINISHED = """
UPDATE reliable_jobs_job SET status = CASE WHEN crashes > 0 THEN 'running' ELSE 'waiting' END, finished_at = NULL
WHERE id IN (SELECT id FROM reliable_jobs_job WHERE status = 'succeeded' ORDER BY created_at DESC LIMIT %s)
"""


def set_up(name: str) -> None:
    parts = urlsplit(SERVER)
    os.environ["DATABASE_URL"] = urlunsplit(parts._replace(path=f"/{name}"))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f'DROP DATABASE IF EXISTS "{name}"')
        server.execute(f'CREATE DATABASE "{name}"')
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def drop(name: str) -> None:
    from django.db import connections

    connections.close_all()
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f'DROP DATABASE IF EXISTS "{name}"')


def fill(rows: int) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE reliable_jobs_job, reliable_jobs_jobevent")
        cursor.execute(FILL, {"rows": rows, "mixed": MIXED})
        cursor.execute(UNFINISHED, [WAITING])
        cursor.execute("VACUUM ANALYZE reliable_jobs_job")


def pages(rows: int) -> dict[str, str]:
    from django.urls import reverse

    from reliable_jobs.models.selection import STATES

    base = reverse("admin:reliable_jobs_job_changelist")
    some = uuid.UUID(bytes=hashlib.md5(str(rows // 2 // 70 * 70).encode()).digest())
    found = {"first page": base, "last page": f"{base}?p={min(100, rows // 100)}"}
    found.update({f"state {name}": f"{base}?state={name}" for name in STATES})
    day = datetime.datetime.now() - datetime.timedelta(days=1)
    found["failed, past 24 hours"] = f"{base}?state=failed&since={day:%Y-%m-%d+%H:%M}"
    found["search id"] = f"{base}?q={some}"
    found["search task"] = f"{base}?q=shop.tasks.task_7"
    found["search task, failed"] = f"{base}?q=shop.tasks.task_10&state=failed"
    found["search task, nothing found"] = f"{base}?q=shop.tasks.task_7&state=expired"
    found["search key"] = f"{base}?q=key-{rows // 2 // 10 * 10}"
    found["search nothing"] = f"{base}?q=there+is+no+such+thing"
    found["a job"] = reverse("admin:reliable_jobs_job_change", args=[some])
    return found


def measured(client: Any, address: str) -> tuple[float, list[dict[str, str]]]:
    """Median of one request in ms, and its statements on the jobs' tables."""
    from django.db import connection, reset_queries

    times = []
    for _ in range(REPEATS):
        reset_queries()
        started = time.perf_counter()
        response = client.get(address)
        times.append((time.perf_counter() - started) * 1000)
        assert response.status_code == 200, (address, response.status_code)
    connection.force_debug_cursor = True
    try:
        reset_queries()
        client.get(address)
        return statistics.median(times), [query for query in connection.queries if "reliable_jobs_" in query["sql"]]
    finally:
        connection.force_debug_cursor = False


def explain(queries: list[dict[str, str]]) -> str:
    from django.db import connection

    slowest = max(queries, key=lambda query: float(query["time"]))
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {slowest['sql'].replace('%', '%%')}", [])
        return "\n".join(f"        {line}" for (line,) in cursor.fetchall())


def requeue_10000(client: Any) -> float:
    """A bulk act on 10,000 jobs that have succeeded, carried out to its end, in ms."""
    from django.urls import reverse

    from reliable_jobs.models import BulkAct
    from reliable_jobs.sweep import acts

    address = reverse("admin:reliable_jobs_job_act", args=["requeue"])
    started = time.perf_counter()
    response = client.post(f"{address}?state=succeeded", {"queue": "", "rate": ""})
    assert response.status_code == 302, response.status_code
    act = BulkAct.objects.get()
    while act.done + act.skipped < 10_000 and acts.sweep("default"):
        act.refresh_from_db()
    took = (time.perf_counter() - started) * 1000
    BulkAct.objects.all().delete()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=MIXED, help="the size to compare with")
    parser.add_argument("--plans", action="store_true", help="explain the slowest statement of each page")
    parser.add_argument("--keep", action="store_true", help="leave the database there")
    options = parser.parse_args()
    name = f"rj_benchmark_admin_{os.getpid()}"
    set_up(name)
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.create_superuser("benchmark"))
    results: dict[int, dict[str, tuple[float, float]]] = {}
    say: Callable[..., None] = print
    try:
        for rows in (options.few, options.rows):
            say(f"Filling in {rows:,} jobs …", flush=True)
            fill(rows)
            results[rows] = {}
            for what, address in pages(rows).items():
                took, queries = measured(client, address)
                results[rows][what] = took, sum(float(query["time"]) for query in queries) * 1000
                if options.plans and rows == options.rows:
                    say(f"\n{what}: {took:.1f} ms, {len(queries)} statements\n{explain(queries)}", flush=True)
            results[rows]["requeue 10,000"] = requeue_10000(client), float("nan")
    finally:
        if options.keep:
            say(f"Kept: {name}")
        else:
            drop(name)
    few, many = results[options.few], results[options.rows]
    say(f"\nms per request (of these in the database); load {os.getloadavg()[0]:.1f}")
    say(f"{'':28}{options.few:>18,}{options.rows:>18,}   ratio")
    for what, (took, inside) in many.items():
        before, before_inside = few[what]
        say(f"{what:28}{before:>9.1f} ({before_inside:6.1f}){took:>9.1f} ({inside:6.1f}){took / before:>8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
