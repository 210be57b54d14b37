"""Which of the configured databases hold jobs, and which of them a call means.

The database that the routers choose for a new job always counts. Another one counts when the routers allow the jobs
table there, the table exists, and it can be written: a database of another application, a read replica and a second
name of the same database do not count. A site with one database is never asked anything.

The answers are kept for a minute, and forgotten after a migration.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from celery.exceptions import SoftTimeLimitExceeded
from django.db import Error, connections, router

from reliable_jobs.compat.django import database_settings, made_connections, may_hold, quoted, settings_of, table_names
from reliable_jobs.compat.django_transaction import in_transaction, is_of_a_test, open_blocks
from reliable_jobs.conf import settings
from reliable_jobs.errors import AmbiguousTransaction
from reliable_jobs.models import Job

logger = logging.getLogger(__name__)

#: How long an answer is believed, in seconds; a shorter time when the database could not be asked.
BELIEVED = 60.0
BELIEVED_UNREACHABLE = 10.0


class Answer(NamedTuple):
    """What a database says about the jobs table."""

    #: The same for two aliases that lead to the same table.
    identity: Hashable
    #: Why the database does not count; "" when it does, also when it could not be asked.
    why_not: str = ""


_answers: dict[tuple[str, ...], tuple[float, Answer]] = {}


def of_new_job(using: str | None = None) -> tuple[str, str]:
    """The database that a new job is written to, and its usual name, which the job's messages carry.

    Args:
        using: the alias, where the caller names one.

    Raises:
        AmbiguousTransaction: as :func:`write_alias`.
    """
    usual = router.db_for_write(Job)
    alias = using or write_alias(usual)
    return alias, usual if alias != usual and ask(alias).identity == ask(usual).identity else alias


def write_alias(usual: str = "") -> str:
    """The database whose open transaction a new job belongs to; the router's write alias where none is open.

    Args:
        usual: the router's write alias, where the caller knows it.

    Raises:
        AmbiguousTransaction: transactions are open on two databases that both hold the jobs table.
    """
    default = usual or router.db_for_write(Job)
    open_aliases = [
        connection.alias
        for connection in made_connections()
        if in_users_transaction(connection) and may_hold(connection.alias, Job)
    ]
    if any(alias != default for alias in open_aliases):
        open_aliases = list(distinct(sorted(open_aliases, key=lambda alias: alias != default)))
    if len(open_aliases) > 1:
        raise AmbiguousTransaction(
            f"Transactions are open on {' and '.join(sorted(open_aliases))}; a job can commit with only one of them. "
            "Say which: apply_async(..., using='…')."
        )
    return open_aliases[0] if open_aliases else default


def in_users_transaction(connection: Any) -> bool:
    """Whether a transaction of the caller's is open. Django's TestCase holds one on every database, which is not."""
    return any(not is_of_a_test(block) for block in open_blocks(connection))


def candidates() -> list[str]:
    """The databases that may hold jobs as far as the settings and the routers say, the usual one first. Opens no
    connection."""
    usual = router.db_for_write(Job)
    return [usual, *(alias for alias in connections if alias != usual and may_hold(alias, Job))]


def in_order() -> Iterator[str]:
    """The databases that hold jobs, the usual one first; each is asked when it is its turn."""
    usual, *others = candidates()
    yield usual
    if others:
        yield from distinct(others, seen={ask(usual).identity})


def distinct(names: Iterable[str], seen: set[Hashable] | None = None) -> Iterator[str]:
    """Those of the databases that hold jobs; of two names of one database the first.

    Args:
        seen: identities of databases that are left out.
    """
    seen = set() if seen is None else seen
    for alias in names:
        answer = ask(alias)
        if not answer.why_not and answer.identity not in seen:
            seen.add(answer.identity)
            yield alias


def aliases() -> list[str]:
    """The databases that hold jobs, the usual one first."""
    return list(in_order())


def left_out() -> dict[str, str]:
    """The databases where the routers allow the jobs table and which hold no jobs, with the reason."""
    usual, *others = candidates()
    known = {ask(usual).identity: usual}
    found: dict[str, str] = {}
    for alias in others:
        answer = ask(alias)
        if answer.why_not:
            found[alias] = answer.why_not
        elif answer.identity in known:
            found[alias] = f"it is the same database as {known[answer.identity]!r}"
        else:
            known[answer.identity] = alias
    return found


def on_each(work: Callable[[str], Any], what: str) -> None:
    """Do something with every database that holds jobs. An error of one does not keep the others from their turn, and
    closes this thread's connection to it.

    Args:
        what: for the log, e.g. "The sweep".

    Raises:
        Exception: the last error, after all have had their turn.
    """
    trouble: Exception | None = None
    for alias in in_order():
        try:
            work(alias)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            logger.warning("%s of database %r failed (%s: %s).", what, alias, type(error).__name__, error)
            trouble = error
            discard(alias)
    if trouble is not None:
        raise trouble


def discard(alias: str) -> None:
    """Close a connection that failed, so that the next use makes a new one. It may be whole: what was a primary and is
    a replica now answers, and takes no write."""
    if not in_transaction(connections[alias]):
        with contextlib.suppress(Error):
            connections[alias].close()


def keep_connections() -> Callable[[], None]:
    """Let this process keep its connections between two uses: for WORKER_CONN_MAX_AGE seconds where CONN_MAX_AGE is 0,
    Django's default. Django's own ``close_old_connections`` closes them, and has each checked before it is used again.
    Databases with a pool of connections (``OPTIONS["pool"]``) keep theirs there.

    Returns:
        What undoes it.
    """
    changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for configured in database_settings().values():
        if not settings.WORKER_CONN_MAX_AGE or configured.get("OPTIONS", {}).get("pool"):
            continue
        changed.append((configured, {name: configured[name] for name in ("CONN_MAX_AGE", "CONN_HEALTH_CHECKS")}))
        if configured["CONN_MAX_AGE"] == 0:
            configured["CONN_MAX_AGE"] = settings.WORKER_CONN_MAX_AGE
        configured["CONN_HEALTH_CHECKS"] = True

    def undo() -> None:
        for configured, before in changed:
            configured.update(before)

    return undo


def forget(**kwargs: Any) -> None:
    """Ask again. A ``post_migrate`` receiver."""
    _answers.clear()


def ask(alias: str) -> Answer:
    """What the database says, or has said lately. Safe in an open transaction: only catalogs are read."""
    key = _key(alias)
    known = _answers.get(key)
    if known is not None and time.monotonic() < known[0]:
        return known[1]
    believed = BELIEVED
    try:
        answer = _ask(connections[alias])
    except AssertionError:  # Django's TestCase allows no queries to this database
        return Answer(alias, "this test may not use it")
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        logger.info("Database %r can't be asked whether it holds jobs: %s", alias, error)
        answer, believed = Answer(alias), BELIEVED_UNREACHABLE
    _answers[key] = time.monotonic() + believed, answer
    return answer


def _key(alias: str) -> tuple[str, ...]:
    """The settings are part of it because tests change what an alias means."""
    configured = database_settings().get(alias, {})
    return (alias, *(str(configured.get(name)) for name in ("ENGINE", "NAME", "HOST", "PORT")))


def _ask(connection: Any) -> Answer:
    vendor = {"postgresql": _postgresql, "mysql": _mysql, "sqlite": _sqlite}.get(connection.vendor)
    if vendor is not None:
        return vendor(connection)
    there = Job._meta.db_table in table_names(connection)
    return Answer(connection.alias, "" if there else NO_TABLE)


NO_TABLE = "it has no jobs table"
READ_ONLY = "it can only be read"


def _postgresql(connection: Any) -> Answer:
    table = quoted(connection, Job._meta.db_table)
    with connection.cursor() as cursor:
        # The server's start and the table's oid tell two names of one database apart from two databases.
        cursor.execute(
            """SELECT jobs::oid::text,
                      pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean
                          OR NOT coalesce(has_table_privilege(jobs, 'UPDATE'), false),
                      EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = jobs),
                      current_database()::text, pg_postmaster_start_time()::text
               FROM to_regclass(%s) AS jobs""",
            [table],
        )
        oid, read_only, subscribed, database, started = cursor.fetchone()
    if oid is None:
        return Answer(connection.alias, NO_TABLE)
    if read_only:
        return Answer(connection.alias, READ_ONLY)
    return Answer((started, database, oid), "its jobs are copies, from a logical replication" if subscribed else "")


def _mysql(connection: Any) -> Answer:
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT @@hostname, @@port, DATABASE(), @@global.read_only OR @@global.innodb_read_only,
                      EXISTS (SELECT 1 FROM information_schema.tables
                              WHERE table_schema = DATABASE() AND table_name = %s)""",
            [Job._meta.db_table],
        )
        host, port, database, read_only, there = cursor.fetchone()
    if not there:
        return Answer(connection.alias, NO_TABLE)
    return Answer((host, port, database), READ_ONLY if read_only else "")


def _sqlite(connection: Any) -> Answer:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = %s)", [Job._meta.db_table]
        )
        there = cursor.fetchone()[0]
        cursor.execute("PRAGMA query_only")
        query_only = cursor.fetchone()[0]
        cursor.execute("PRAGMA database_list")
        path = next((row[2] for row in cursor.fetchall() if row[1] == "main"), "")
    if not there:
        return Answer(connection.alias, NO_TABLE)
    name = str(settings_of(connection)["NAME"])
    read_only = query_only or (name.startswith("file:") and ("mode=ro" in name or "immutable=1" in name))
    return Answer(path or name, READ_ONLY if read_only else "")
