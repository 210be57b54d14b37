"""Writes what a run says of itself: ``update_state()``, STARTED, a forgotten result.

From an atomic task function it goes out on a connection of its own, so that others see it while the function runs. The
row's lock does not matter: no lock of it is asked for. SQLite has one writer, which is the function itself: there it is
seen when the run has ended.
"""

from __future__ import annotations

import threading
import uuid
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from django.db import Error as DatabaseError
from django.db import connections

from reliable_jobs import databases
from reliable_jobs.compat.django import copied_connection
from reliable_jobs.compat.django_transaction import is_of_a_test, open_blocks
from reliable_jobs.lifecycle import sql
from reliable_jobs.logs import job_logger
from reliable_jobs.models import JobState
from reliable_jobs.run import kept_connections

logger = job_logger(__name__)

#: The epoch is the committed row's: a run that is not committed has not raised it yet, and readers compare with it.
_WRITE = f"""
    INSERT INTO "{JobState._meta.db_table}" (job_id, epoch, state, meta, at)
    SELECT id, epoch, %s, %s, {{now}} FROM {{job}} WHERE id = %s AND status IN {{statuses}} {{where_new}}
    {{unless_there}}
"""
_OPEN, _FINAL = "('waiting', 'running')", "('succeeded', 'failed', 'cancelled', 'expired')"


def _statement(vendor: str, *, final: bool, weak: bool) -> str:
    """
    Args:
        weak: do not replace what the same run has said before.
    """
    table = f'"{JobState._meta.db_table}"'
    if vendor == "mysql":
        unless_there = "ON DUPLICATE KEY UPDATE " + ", ".join(
            f"{name} = VALUES({name})" for name in ("state", "meta", "at", "epoch")
        )
    else:
        unless_there = "ON CONFLICT (job_id) DO UPDATE SET " + ", ".join(
            f"{name} = excluded.{name}" for name in ("epoch", "state", "meta", "at")
        )
    # One condition for all databases: MySQL has none for the update.
    newer = f"SELECT 1 FROM {table} AS s WHERE s.job_id = {{job}}.id AND s.epoch >= {{job}}.epoch"
    where_new = f"AND NOT EXISTS ({newer})" if weak else ""
    return (
        _WRITE.replace("{statuses}", _FINAL if final else _OPEN)
        .replace("{where_new}", where_new)
        .replace("{unless_there}", unless_there)
    )


def say(job_id: uuid.UUID, state: str, meta: str | None, *, weak: bool = False) -> bool:
    """Write what an unfinished job's run says of itself; returns whether there is such a job. Never raises a database's
    error: progress that can't be written fails no job.

    Args:
        meta: JSON text, or None.
        weak: do not replace what the same run has said before.
    """
    return _on_its_database(job_id, (state, meta), final=False, weak=weak)


def forget(job_id: uuid.UUID, mark: str) -> bool:
    """Mark a settled job's result as forgotten; returns whether there is such a job."""
    return _on_its_database(job_id, (mark, None), final=True, weak=False)


def _on_its_database(job_id: uuid.UUID, values: tuple[Any, ...], *, final: bool, weak: bool) -> bool:
    for alias in databases.in_order():
        try:
            text = _statement(connections[alias].vendor, final=final, weak=weak)
            if _write(alias, text, (*values, job_id)):
                return True
        except SoftTimeLimitExceeded:
            raise
        except DatabaseError as error:
            logger.warning("Job %s: its state %s could not be written: %s", job_id, values[0], error)
    return False


def _write(alias: str, text: str, values: tuple[Any, ...]) -> int:
    connection: Any = connections[alias]
    blocks = open_blocks(connection)
    if not blocks or connection.vendor == "sqlite" or any(map(is_of_a_test, blocks)):
        return sql.write(alias, text, *values)
    for last in (False, True):
        own = _own.connection(alias)
        try:
            with own.cursor() as cursor:
                cursor.execute(sql.in_words(own, text), sql.prepared(own, values))
                return int(cursor.rowcount)
        except DatabaseError:
            own.close()  # it may have died since it was last used
            if last:
                raise
        finally:
            if not kept_connections.active:
                own.close()
    return 0


class _Own(threading.local):
    """This thread's connections that no transaction is opened on."""

    def __init__(self) -> None:
        self._by_alias: dict[str, tuple[Any, Any]] = {}

    def connection(self, alias: str) -> Any:
        usual, own = self._by_alias.get(alias, (None, None))
        if usual is not connections[alias]:  # a test has given the alias another meaning
            own = copied_connection(connections[alias])
            self._by_alias[alias] = connections[alias], own
        return own


_own = _Own()
