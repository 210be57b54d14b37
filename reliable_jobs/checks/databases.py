"""The databases that hold jobs."""

from __future__ import annotations

import datetime
import math
import zoneinfo
from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register
from django.db import DatabaseError, connections, router

from reliable_jobs import databases as job_databases
from reliable_jobs.checks.celery_settings import TAG
from reliable_jobs.checks.loading import reliable_tasks
from reliable_jobs.compat.celery import configured_app
from reliable_jobs.compat.django import settings_of, zone_of
from reliable_jobs.models import Job

#: Whose SQL lifecycle/sql.py speaks.
SUPPORTED = ("postgresql", "mysql", "sqlite")
#: How far a server's clock may be from ours.
CLOCK_TOLERANCE = datetime.timedelta(minutes=5)
#: Seconds that SQLite waits for its write lock where OPTIONS do not say (Python's default).
SQLITE_TIMEOUT = 5.0
#: A non-atomic run needs a second connection for its lease, the sweeper beside the worker a third.
SMALLEST_POOL = 3
#: psycopg_pool's default for min_size, and for max_size where only that is given.
POOL_DEFAULT = 4


def _of(vendor: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Alias, settings and OPTIONS of our databases of one vendor ("" for all)."""
    for alias in job_databases.candidates():
        connection = connections[alias]
        if vendor in ("", connection.vendor):
            yield alias, settings_of(connection), settings_of(connection).get("OPTIONS") or {}


@register(TAG)
def check_isolation(**kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for alias, _, options in _of("mysql"):
        level = options.get("isolation_level", "read committed")
        if str(level).lower() != "read committed":
            found.append(
                Warning(
                    f"Database {alias!r} runs at {level or 'the server default of (repeatable read)'}: a transaction "
                    "does not see rows that another one has committed meanwhile, so keys and claims collide.",
                    hint="Remove isolation_level from its OPTIONS; READ COMMITTED is Django's default.",
                    id="reliable_jobs.W020",
                )
            )
    return found


@register(Tags.database)
def check_mysql_clock(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for alias, _, _ in _of("mysql"):
        connection = connections[alias]
        if alias not in (databases or ()) or zone_of(connection) == "UTC":
            continue
        zone = zone_of(connection)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT CURRENT_TIMESTAMP(6)")
                theirs = cursor.fetchone()[0]
        except DatabaseError:
            continue
        ours = datetime.datetime.now(zoneinfo.ZoneInfo(zone)).replace(tzinfo=None)
        if abs(theirs.replace(tzinfo=None) - ours) > CLOCK_TOLERANCE:
            found.append(
                Warning(
                    f"Django stores times of database {alias!r} in the zone {zone}, but its sessions have another one "
                    f"({theirs:%H:%M} instead of {ours:%H:%M}): due times and expiry are wrong by the difference.",
                    hint="Set OPTIONS['init_command'] to \"SET time_zone = '…'\" with that zone; or, better, USE_TZ = "
                    "True and no TIME_ZONE in DATABASES.",
                    id="reliable_jobs.W027",
                )
            )
    return found


@register(TAG)
def check_autocommit(**kwargs: Any) -> list[CheckMessage]:
    return [
        Error(
            f"Database {alias!r} has AUTOCOMMIT = False: Django commits nothing by itself there, so no job's "
            "transaction would ever be committed. Workers do not start.",
            hint="Remove AUTOCOMMIT from its settings, and use transaction.atomic().",
            id="reliable_jobs.E020",
        )
        for alias, configured, _ in _of("")
        if not configured.get("AUTOCOMMIT", True)
    ]


@register(TAG)
def check_vendor(**kwargs: Any) -> list[CheckMessage]:
    usual = router.db_for_write(Job)
    if connections[usual].vendor in SUPPORTED:
        return []
    return [
        Error(
            f"Jobs go to the database {usual!r}, which is {connections[usual].vendor}: reliable_jobs knows PostgreSQL, "
            "MySQL, MariaDB and SQLite only, so every enqueue would fail.",
            hint="Let a router's db_for_write() answer the alias of one of these for reliable_jobs. A job then commits "
            "with the transactions of that database, and not with this one's.",
            id="reliable_jobs.E021",
        )
    ]


@register(TAG)
def check_sqlite_mode(**kwargs: Any) -> list[CheckMessage]:
    return [
        Warning(
            f"Database {alias!r} is SQLite without transaction_mode IMMEDIATE: a transaction that reads before it "
            "writes fails at once with 'database is locked' when worker and web process meet.",
            hint="Set OPTIONS = {'transaction_mode': 'IMMEDIATE', 'timeout': 20, "
            "'init_command': 'PRAGMA journal_mode=WAL;'}. For more than a small site use PostgreSQL.",
            id="reliable_jobs.W021",
        )
        for alias, _, options in _of("sqlite")
        if str(options.get("transaction_mode") or "DEFERRED").upper() not in ("IMMEDIATE", "EXCLUSIVE")
    ]


@register(TAG)
def check_sqlite_and_long_functions(**kwargs: Any) -> list[CheckMessage]:
    app = configured_app()
    options = {alias: options for alias, _, options in _of("sqlite")}.get(router.db_for_write(Job))
    if app is None or options is None:
        return []
    patience = float(options.get("timeout", SQLITE_TIMEOUT))
    try:
        tasks = reliable_tasks(app)
    except Exception:  # a task of the project's that can't be made: E003 says so
        return []
    long = [task.name for task in tasks if task.atomic and not (task.time_limit or math.inf) < patience]
    if not long:
        return []
    return [
        Info(  # a limit is not everything: most tasks take milliseconds and have none
            "On SQLite an atomic task function holds the only write lock until it ends, and any other writer, e.g. a "
            f"web request, fails with 'database is locked' after {patience:g} s. Without a time_limit below that: "
            f"{', '.join(long[:10])}{' …' if len(long) > 10 else ''}.",
            hint="Set atomic = False on tasks that may take longer, or a time_limit below OPTIONS['timeout']; for more "
            "than a small site use PostgreSQL.",
            id="reliable_jobs.I028",
        )
    ]


@register(Tags.database)
def check_sqlite_journal(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for alias, _, _ in _of("sqlite"):
        if alias not in (databases or ()):
            continue
        try:
            with connections[alias].cursor() as cursor:
                cursor.execute("PRAGMA journal_mode")
                mode = str(cursor.fetchone()[0]).lower()
        except DatabaseError:
            continue
        if mode not in ("wal", "memory"):
            found.append(
                Warning(
                    f"Database {alias!r} is SQLite with journal_mode {mode}: whoever writes locks out all readers.",
                    hint="Set OPTIONS['init_command'] = 'PRAGMA journal_mode=WAL;'.",
                    id="reliable_jobs.W022",
                )
            )
    return found


@register(Tags.database)
def check_databases_without_jobs(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    if len(job_databases.candidates()) < 2 or not databases:
        return []
    usual = router.db_for_write(Job)
    found: list[CheckMessage] = [
        Info(
            f"Database {alias!r} holds no jobs: {why}. A job that is enqueued in its transaction is written to "
            f"{usual!r}, and stays when that transaction rolls back.",
            hint=f"If jobs belong there, run manage.py migrate reliable_jobs --database {alias}; else let a router's "
            "allow_migrate() answer False for reliable_jobs, or silence this.",
            id="reliable_jobs.I020",
        )
        for alias, why in job_databases.left_out().items()
    ]
    both = [alias for alias in job_databases.aliases() if settings_of(connections[alias]).get("ATOMIC_REQUESTS")]
    if len(both) > 1:
        found.append(
            Warning(
                f"ATOMIC_REQUESTS is on for {' and '.join(both)}, and each of them holds jobs: a request has a "
                "transaction open on each, so an enqueue raises AmbiguousTransaction.",
                hint="Say where each job belongs (apply_async(..., using='…')), keep the jobs table in one database by "
                "a router's allow_migrate(), or switch ATOMIC_REQUESTS off on the others.",
                id="reliable_jobs.W026",
            )
        )
    return found


@register(TAG)
def check_persistent_connections(**kwargs: Any) -> list[CheckMessage]:
    return [
        Warning(
            f"Database {alias!r} keeps connections (CONN_MAX_AGE) without looking whether they still live: after a "
            "restart of the server the first request or job of each fails.",
            hint="Set CONN_HEALTH_CHECKS to True.",
            id="reliable_jobs.W023",
        )
        for alias, configured, _ in _of("")
        if configured.get("CONN_MAX_AGE") != 0
        and not configured.get("CONN_HEALTH_CHECKS")
        and connections[alias].vendor != "sqlite"
    ]


@register(TAG)
def check_pool(**kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for alias, _, options in _of("postgresql"):
        pool = options.get("pool")
        if not isinstance(pool, dict):
            continue
        size = pool.get("max_size") or pool.get("min_size", POOL_DEFAULT)
        if size < SMALLEST_POOL:
            found.append(
                Warning(
                    f"Database {alias!r} has a pool of {size} connection(s) per process; a non-atomic run needs two at "
                    "once and the sweeper beside the worker one, so they wait for each other until the pool times out.",
                    hint=f"Set OPTIONS['pool']['max_size'] to {SMALLEST_POOL} or more, and for thread pools to twice "
                    "their concurrency and one.",
                    id="reliable_jobs.W024",
                )
            )
    return found
