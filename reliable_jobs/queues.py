"""Which queues have jobs of a kind, for the cost of one step of an index for each queue.

``SELECT DISTINCT queue`` would read all those jobs: a hundred thousand that wait in one queue would make each look of
each sweeper longer. MySQL has no partial indexes, so that such a step would read settled jobs, and SQLite no LATERAL:
there the rows are read.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from django.db import connections

from reliable_jobs.clock import now_sql
from reliable_jobs.compat.django import zone_of
from reliable_jobs.models import Job, Pause


class Kind(NamedTuple):
    """Jobs whose queues are asked for."""

    #: The condition of a partial index, word for word, which begins with the queue …
    condition: str
    #: … and has this time next.
    time: str


#: Waiting, and no message is believed out.
UNSENT = Kind("status = 'waiting' AND sends = 0", "due_at")
#: Waiting.
WAITING = Kind("status = 'waiting'", "due_at")
#: Waiting, and published.
SENT = Kind("status = 'waiting' AND sends > 0", "check_at")

#: PostgreSQL: the first job of the first queue, of the next queue, and so on.
_FOUND = """
    WITH RECURSIVE found (queue, at) AS (
        (SELECT queue, {time} FROM {job} WHERE {condition} ORDER BY queue, {time} LIMIT 1)
        UNION ALL
        SELECT following.queue, following.at FROM found, LATERAL (
            SELECT queue, {time} AS at FROM {job} WHERE {condition} AND queue > found.queue
            ORDER BY queue, {time} LIMIT 1
        ) AS following
    )
"""
_ANY = f"{_FOUND} SELECT queue FROM found ORDER BY queue"
_ANY_BY_ROWS = "SELECT DISTINCT queue FROM {job} WHERE {condition} ORDER BY queue"

#: The oldest first. Whether anything is paused is asked with it: a question of its own takes as long as this one.
_PAST = f"{_FOUND} SELECT queue, EXISTS (SELECT 1 FROM {{pause}}) FROM found WHERE at <= {{now}} ORDER BY at"
_PAST_BY_ROWS = """
    SELECT queue, EXISTS (SELECT 1 FROM {pause})
    FROM {job} WHERE {condition} AND {time} <= {now} GROUP BY queue ORDER BY MIN({time})
"""


def with_any(kind: Kind, using: str) -> list[str]:
    """The queues that have jobs of this kind, by name."""
    return [queue for (queue,) in _rows(using, kind, _ANY, _ANY_BY_ROWS)]


def with_past(kind: Kind, using: str) -> tuple[list[str], bool]:
    """The queues in which the time of a job of this kind has come, the one that has waited longest first; and, where
    there is one, whether any queue or task is paused."""
    found = _rows(using, kind, _PAST, _PAST_BY_ROWS)
    return [queue for queue, _ in found], any(paused for _, paused in found)


def _rows(using: str, kind: Kind, by_steps: str, by_rows: str) -> list[tuple[Any, ...]]:
    connection = connections[using]
    text = by_steps if connection.vendor == "postgresql" else by_rows
    with connection.cursor() as cursor:
        cursor.execute(_in_words(text, kind, connection.vendor, zone_of(connection) == "UTC"), [])
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


@functools.cache
def _in_words(text: str, kind: Kind, vendor: str, utc: bool) -> str:
    """Everything that it depends on is among the arguments, as in lifecycle/sql.py."""
    quote = "`" if vendor == "mysql" else '"'
    tables = {name: f"{quote}{model._meta.db_table}{quote}" for name, model in (("job", Job), ("pause", Pause))}
    return text.format(**tables, now=now_sql(vendor, utc), condition=kind.condition, time=kind.time)
