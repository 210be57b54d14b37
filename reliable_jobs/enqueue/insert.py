"""New jobs into the table: one INSERT for a job, COPY (or INSERTs of many rows) for thousands.

Django's ORM would name every column and compile the statement anew for each job, which was most of what an enqueue
cost. Here the statement is made once for each shape of a row; values are prepared by the model's own fields.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from django.core.signals import setting_changed
from django.db import connections, transaction
from django.db.models.constants import OnConflict

from reliable_jobs.lifecycle.sql import Moment, Shape, params_of, shape_of, sql_of
from reliable_jobs.models import Job
from reliable_jobs.status import Reason, Status

#: What every new row holds beside what its call says; the other columns are NULL, or the database's default.
_NEW: Mapping[str, str | int] = {
    "status": str(Status.WAITING),
    "reason": str(Reason.NONE),
    "epoch": 0,
    "rev": 0,
    "attempt": 0,
    "crashes": 0,
    "interruptions": 0,
    "requeues": 0,
    "key_forever": False,
    "error": "",
    "traceback": "",
    "worker": "",
}
#: Columns that hold the same for all jobs of a kind. Not the queue: some sites have one for each customer.
_OF_A_KIND = {"task", "priority", "sends", "content_type", "content_encoding"}
#: Rows of one INSERT where there is no COPY, and where the database takes that many parameters.
_BLOCK = 500
#: The seventeenth digit of a UUID, made one of RFC 9562.
_VARIANT = {f"{digit:x}": "89ab"[digit & 3] for digit in range(16)}
#: Rows of one write to a COPY.
_COPY_WRITE = 100


class Each(NamedTuple):
    """What sets one of many jobs apart."""

    id: str
    body: bytes
    envelope: str


class _Statement(NamedTuple):
    head: str
    row: str
    suffix: str


def insert(alias: str, values: Mapping[str, Any], *, unless_there: bool = False) -> bool:
    """Insert one row; says whether it was.

    Args:
        values: by field name; None is left out. Times are datetimes or :class:`Moment`.
        unless_there: do nothing where the id or the key exists already.

    Raises:
        django.db.Error: as any write.
    """
    connection = connections[alias]
    given = {name: value for name, value in values.items() if value is not None}
    shape = shape_of(given, _OF_A_KIND)
    made = _statement(connection.vendor, alias, shape, unless_there)
    # As the ORM does: a caller that catches the error must not commit what PostgreSQL has given up.
    with transaction.mark_for_rollback_on_error(using=alias), connection.cursor() as cursor:
        cursor.execute(f"{made.head}{made.row}{made.suffix}", params_of(connection, shape, given))
        return bool(cursor.rowcount == 1)


def random_ids() -> Iterator[str]:
    """Random UUIDs (version 4) as text, without an end. ``str(uuid.uuid4())`` would be a third of what a job of a bulk
    costs its caller: 3.4 of 11 µs."""
    while True:
        digits = os.urandom(16 * 100).hex()
        for at in range(0, len(digits), 32):
            one = digits[at : at + 32]
            yield f"{one[:8]}-{one[8:12]}-4{one[13:16]}-{_VARIANT[one[16]]}{one[17:20]}-{one[20:]}"


def insert_many(alias: str, common: Mapping[str, Any], blocks: Iterable[Iterable[Each]]) -> None:
    """Insert many rows that differ in id, body and envelope only, in the caller's open transaction.

    Args:
        common: as in :func:`insert`. Without a ``root_id`` each is its own root.
        blocks: a COPY is made of each, and its rows are made while the server takes in those before them. What makes
            the blocks may use the database; what makes a row must not, the driver would wait for ever.

    Raises:
        django.db.Error: as any write.
    """
    connection = connections[alias]
    given = {name: value for name, value in common.items() if value is not None}
    with transaction.mark_for_rollback_on_error(using=alias), connection.cursor() as cursor:
        if connection.vendor == "postgresql" and hasattr(cursor, "copy"):
            _copy(connection, cursor, given, blocks)
        else:
            _insert_each(connection, cursor, given, itertools.chain.from_iterable(blocks))


# --- INSERT -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _statement(vendor: str, alias: str, shape: Shape, unless_there: bool = False) -> _Statement:
    """The INSERT for rows of a shape. The vendor is among the arguments because tests change what an alias means."""
    ops = connections[alias].ops
    conflict = OnConflict.IGNORE if unless_there else None
    forms = dict(shape)
    for name, constant in _NEW.items():
        forms.setdefault(name, repr(constant))
    if vendor != "postgresql":
        forms.setdefault("created_at", Moment())  # the column's default is in the session's zone on MySQL
    columns = [ops.quote_name(name) for name in forms]
    values = [sql_of(connections[alias], form) for form in forms.values()]
    into = f"{ops.insert_statement(on_conflict=conflict)} {ops.quote_name(Job._meta.db_table)}"
    return _Statement(
        f"{into} ({', '.join(columns)}) VALUES ",
        f"({', '.join(values)})",
        f" {ops.on_conflict_suffix_sql([], conflict, [], [])}",
    )


def _insert_each(connection: Any, cursor: Any, common: Mapping[str, Any], each: Iterable[Each]) -> None:
    rows = iter(each)
    most = connection.features.max_query_params
    size = min(_BLOCK, most // (len(common) + 4)) if most else _BLOCK
    while block := list(itertools.islice(rows, size)):
        params: list[Any] = []
        for job in block:
            job_id = uuid.UUID(job.id)
            values = {"root_id": job_id, **common, "id": job_id, "body": job.body, "envelope": job.envelope}
            shape = shape_of(values)
            params += params_of(connection, shape, values)
        made = _statement(connection.vendor, connection.alias, shape)
        cursor.execute(made.head + ", ".join([made.row] * len(block)) + made.suffix, params)


# --- COPY -------------------------------------------------------------------------------------------------------------


def _copy(connection: Any, cursor: Any, common: Mapping[str, Any], blocks: Iterable[Iterable[Each]]) -> None:
    """PostgreSQL's text format, made by hand: what the driver's row by row would do took most of the time."""
    moments = {name: value for name, value in common.items() if isinstance(value, Moment)}
    values = {**_NEW, **common}
    if moments:
        wanted = ", ".join(sql_of(connection, moment) for moment in moments.values())
        cursor.execute(f"SELECT {wanted}", params_of(connection, shape_of(moments), moments))
        values.update(zip(moments, cursor.fetchone(), strict=True))
    root = values.pop("root_id", None)
    columns = ", ".join(connection.ops.quote_name(name) for name in ("id", "root_id", "body", "envelope", *values))
    table = connection.ops.quote_name(Job._meta.db_table)
    rest = "\t".join(_as_text(value) for value in values.values()) + "\n"
    for block in blocks:
        jobs = iter(block)
        with connection.wrap_database_errors, cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
            while part := list(itertools.islice(jobs, _COPY_WRITE)):
                copy.write(
                    "".join(
                        f"{job_id}\t{root or job_id}\t\\\\x{body.hex()}\t{_escaped(envelope)}\t{rest}"
                        for job_id, body, envelope in part
                    )
                )


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return _escaped(str(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _forget(*, setting: str, **kwargs: Any) -> None:
    """As for the statements that are kept in lifecycle/sql.py."""
    if setting in ("USE_TZ", "TIME_ZONE"):
        _statement.cache_clear()


setting_changed.connect(_forget, dispatch_uid="reliable_jobs.insert")
