"""The servers of the databases that hold jobs: durability, clocks, connections, dead rows."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from django.db import connections
from django.utils import timezone

from reliable_jobs.health.finding import Finding, Severity
from reliable_jobs.models import CancelledWorkflow, Job, JobEvent, JobGroup, JobState

#: Seconds by which the clocks of a process and its database may differ.
SKEW = 2.0
#: Share of max_connections from which they run out.
NEARLY_ALL = 0.9
#: Seconds for which a transaction may be open: as long, no dead row is removed.
LONG_TRANSACTION = 3600.0
#: Dead rows that are no trouble, and their share of the live ones that is none.
FEW_DEAD, SHARE_DEAD = 10_000, 0.5


def findings(alias: str) -> Iterator[Finding]:
    """
    Raises:
        django.db.Error: the database can't be asked.
    """
    yield from _clock(alias)
    vendor = connections[alias].vendor
    if vendor == "postgresql":
        yield from _durability(alias)
        yield from _sessions(alias)
        yield from _dead_rows(alias)
    elif vendor == "mysql":
        yield from _mysql_durability(alias)


def _area(alias: str) -> str:
    return f"database {alias!r}"


def _clock(alias: str) -> Iterator[Finding]:
    asks = {"postgresql": "SELECT clock_timestamp()", "mysql": "SELECT UTC_TIMESTAMP(6)"}
    if connections[alias].vendor not in asks:
        return  # SQLite has no other clock than ours
    with connections[alias].cursor() as cursor:
        began = timezone.now()
        cursor.execute(asks[connections[alias].vendor])
        theirs = cursor.fetchone()[0]
        ended = timezone.now()
    utc = datetime.timezone.utc
    began, ended = (one if timezone.is_aware(one) else timezone.make_aware(one) for one in (began, ended))
    theirs = theirs if timezone.is_aware(theirs) else timezone.make_aware(theirs, utc)
    ahead = max((theirs - ended).total_seconds(), 0.0) - max((began - theirs).total_seconds(), 0.0)
    if abs(ahead) > SKEW:
        yield Finding(
            Severity.WARNING,
            _area(alias),
            f"Its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this process's. A countdown that "
            "is reckoned here ends by its clock.",
            "Let both machines synchronise their clocks (NTP).",
        )
    else:
        yield Finding(Severity.INFO, _area(alias), f"Its clock and this process's agree within {SKEW:g} s.")


def _durability(alias: str) -> Iterator[Finding]:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('autovacuum'),"
            " current_setting('server_version')"
        )
        fsync, commit, autovacuum, version = cursor.fetchone()
    yield Finding(Severity.INFO, _area(alias), f"PostgreSQL {version}.")
    if fsync == "off":
        yield Finding(
            Severity.ERROR,
            _area(alias),
            "fsync is off: a crash of the server's machine can lose any data, jobs among them.",
            "Set fsync = on in postgresql.conf.",
        )
    if commit == "off":
        yield Finding(
            Severity.WARNING,
            _area(alias),
            "synchronous_commit is off: a crash of the server loses the jobs and settlements of its last moments.",
            "Set synchronous_commit = on, at least for the roles that enqueue and run jobs.",
        )
    if autovacuum == "off":
        yield Finding(
            Severity.WARNING,
            _area(alias),
            "autovacuum is off: each settled job leaves dead rows, which every sweep then reads.",
            "Set autovacuum = on in postgresql.conf.",
        )


def _sessions(alias: str) -> Iterator[Finding]:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT count(*), current_setting('max_connections')::int,"
            " coalesce(max(extract(epoch FROM clock_timestamp() - xact_start))"
            "  FILTER (WHERE datname = current_database() AND pid <> pg_backend_pid()), 0)::float"
            " FROM pg_stat_activity WHERE backend_type = 'client backend'"
        )
        used, most, oldest = cursor.fetchone()
    if used > NEARLY_ALL * most:
        yield Finding(
            Severity.WARNING,
            _area(alias),
            f"{used} of {most} connections are in use; the next worker or request may get none.",
            "Raise max_connections, lower the workers' concurrency, or put a pooler in between.",
        )
    if oldest > LONG_TRANSACTION:
        yield Finding(
            Severity.WARNING,
            _area(alias),
            f"A transaction has been open for {oldest:.0f} s: meanwhile no dead row is removed, and sweeps slow down.",
            "Find it in pg_stat_activity by xact_start; set idle_in_transaction_session_timeout.",
        )


def _dead_rows(alias: str) -> Iterator[Finding]:
    tables = [model._meta.db_table for model in (Job, JobEvent, JobState, JobGroup, CancelledWorkflow)]
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT relname, n_live_tup, n_dead_tup FROM pg_stat_user_tables"
            " WHERE schemaname = ANY(current_schemas(false)) AND relname = ANY(%s)",
            [tables],
        )
        rows = cursor.fetchall()
    for table, live, dead in rows:
        if dead > max(FEW_DEAD, SHARE_DEAD * live):
            yield Finding(
                Severity.WARNING,
                _area(alias),
                f"{table} has {dead} dead rows beside {live} live ones: autovacuum does not keep up.",
                f"VACUUM (ANALYZE) {table}; then look for long transactions, and lower autovacuum_vacuum_scale_factor "
                "of this table.",
            )


def _mysql_durability(alias: str) -> Iterator[Finding]:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT VERSION(), @@global.innodb_flush_log_at_trx_commit")
        version, flush = cursor.fetchone()
    yield Finding(Severity.INFO, _area(alias), f"MySQL or MariaDB {version}.")
    if int(flush) != 1:
        yield Finding(
            Severity.WARNING,
            _area(alias),
            f"innodb_flush_log_at_trx_commit is {flush}: a crash of the server's machine loses the jobs and "
            "settlements of its last second.",
            "Set innodb_flush_log_at_trx_commit = 1.",
        )
