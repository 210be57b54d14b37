"""Rows by the million, made by the server."""

from __future__ import annotations

from django.db import connection

_FILL = """
    INSERT INTO reliable_jobs_job (
        id, task, queue, status, reason, due_at, check_at, sends, epoch, content_version, failures, crashes,
        interruptions, requeues, key, key_forever, payload, content_type, content_encoding, envelope, error, traceback,
        worker, error_class, release, created_at, started_at, run_started_at, finished_at
    )
    SELECT gen_random_uuid(), 'shop.tasks.task_' || (n % 40), 'queue_' || (n % 8), {status}, {reason}, {due}, {due},
        {sends}, 2, 0, 0, 0, 0, 0, NULL, false, convert_to('[[' || n || '], {{}}, {{}}]', 'utf8'), 'application/json',
        'utf-8', '{{"v": 1, "headers": {{}}, "filler": "' || repeat('x', 200) || '"}}', '', '', 'w', {error},
        'r' || (n % 3), {at}, {at}, {at}, {ended}
    FROM generate_series(1, {rows}) AS n
"""
_WHEN = "now() - interval '30 days' * (n::float / {rows})"


def fill(rows: int, *, status: str, ended: bool, due: str = "", error: str = "''", sends: int = 1) -> None:
    at = _WHEN.format(rows=rows)
    with connection.cursor() as cursor:
        cursor.execute(
            _FILL.format(
                rows=rows,
                status=f"'{status}'",
                reason="''",
                due=due or at,
                sends=sends,
                at=at,
                error=error,
                ended=f"{at} + interval '2 s'" if ended else "NULL",
            )
        )


_STATISTICS = """
    INSERT INTO reliable_jobs_stat (span, at, task, queue, ending, release, n, sum_ms, max_ms, r5, w3)
    SELECT span, at, 'shop.tasks.task_' || number, 'queue_' || (number % 8), ending, 'r1', 50, 1500, 40, 50, 50
    FROM (VALUES (60, interval '48 hours'), (3600, interval '30 days')) AS kept (span, long),
        generate_series(date_trunc('hour', now()) - long, now(), interval '1 s' * span) AS at,
        generate_series(0, 39) AS number, unnest(ARRAY['succeeded', 'failed', 'retried']) AS ending
    ORDER BY at + interval '1 s' * span
"""


def statistics() -> None:
    """What the rollup keeps of 40 tasks in 8 queues, in the order in which it writes it: two days of minutes and 30 of
    hours, three endings of each."""
    with connection.cursor() as cursor:
        cursor.execute(_STATISTICS)
        cursor.execute(
            "INSERT INTO reliable_jobs_queuestat (at, queue, waiting, delayed, running, oldest_s) "
            "SELECT date_trunc('minute', now()) - interval '1 minute' * step, 'queue_' || number, 9, 9, 9, 9 "
            "FROM generate_series(1, 2880) AS step, generate_series(0, 7) AS number"
        )
        cursor.execute("VACUUM ANALYZE reliable_jobs_stat, reliable_jobs_queuestat")


def vacuum() -> None:
    """What a server does by itself: the pages then say that all may see their rows, and an index alone can answer."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE reliable_jobs_job")


def a_million() -> None:
    """A million settled jobs, a hundred thousand failed ones and as many that wait, of the last 30 days."""
    fill(1_000_000, status="succeeded", ended=True)
    fill(100_000, status="failed", ended=True, error="'builtins.Error' || (n % 5)")
    fill(100_000, status="waiting", ended=False, due="now() + interval '1 day' * (n::float / 100000)", sends=0)
    vacuum()
