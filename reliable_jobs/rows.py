"""New jobs into the table: one INSERT for those that are written at once, COPY (or several INSERTs) for thousands.

Django's ORM would name every column and compile the statement anew for each job, which was most of what an enqueue
cost. Here its parts are made once for each shape of a row; values are prepared by the model's own fields.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from django.db import Error, connections, transaction
from django.db.models.constants import OnConflict

from reliable_jobs import joined
from reliable_jobs.models import Job
from reliable_jobs.statements import Moment, Shape, form_of, params_of, shape_of, sql_of
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
#: Columns that hold the same for all jobs of a kind.
_OF_A_KIND = {"task", "queue", "priority", "sends", "content_type", "content_encoding"}
_NEEDS_NO_QUOTING = re.compile(r"[A-Za-z0-9_./:@+-]+").fullmatch
#: Rows of one INSERT where there is no COPY, and where the database takes that many parameters.
_BLOCK = 500
#: Rows of one COPY, and of one write to it.
_COPY_ROWS, _COPY_WRITE = 10_000, 100


class Each(NamedTuple):
    """What sets one of many jobs apart."""

    id: uuid.UUID
    body: bytes
    envelope: str


#: Of one row, by field name.
_Values = Mapping[str, Any]


def insert(alias: str, batch: Sequence[Mapping[str, Any]], *, unless_there: bool = False, commit: bool = False) -> None:
    """Insert rows; those that follow each other and name the same columns in one statement.

    Args:
        batch: the values of each row by field name; None is left out. Times are datetimes or :class:`Moment`.
        unless_there: do nothing where the id or the key exists already.
        commit: the caller's next step is to commit. The COMMIT comes along where it can; the caller's then finds
            nothing to do.

    Raises:
        django.db.Error: as any write, or as a COMMIT.
    """
    connection = connections[alias]
    given = [{name: value for name, value in values.items() if value is not None} for values in batch]
    blocks = [block for _, alike in itertools.groupby(given, tuple) for block in _blocks(connection, alike)]
    try:
        with connection.cursor() as cursor:
            for number, block in enumerate(blocks, start=1):
                joins = commit and number == len(blocks) and joined.can_join(connection)
                with connection.execute_wrapper(joined.Join("INSERT", after=["COMMIT"])) if joins else nullcontext():
                    _insert_block(connection, cursor, block, unless_there)
    except Error:
        # As the ORM does: a caller that catches the error must not commit what PostgreSQL has given up.
        if connection.in_atomic_block:
            transaction.set_rollback(True, using=alias)
        raise


def insert_many(alias: str, common: Mapping[str, Any], each: Iterable[Each]) -> None:
    """Insert many rows that differ in id, body and envelope only: all, or with an error none.

    Args:
        common: as in :func:`insert`. Without a ``root_id`` each is its own root.

    Raises:
        django.db.Error: as any write.
    """
    connection = connections[alias]
    given = {name: value for name, value in common.items() if value is not None}
    with transaction.atomic(using=alias), connection.cursor() as cursor:
        if connection.vendor == "postgresql" and hasattr(cursor, "copy"):
            _copy(connection, cursor, given, each)
        else:
            alike = (
                {"root_id": one.id, **given, "id": one.id, "body": one.body, "envelope": one.envelope} for one in each
            )
            for block in _blocks(connection, alike):
                _insert_block(connection, cursor, block)


# --- INSERT -----------------------------------------------------------------------------------------------------------


def _shape(values: _Values) -> Shape:
    """What all jobs of a kind have in common is written into the statement: half of the work that a driver has with it
    is with its parameters."""
    return tuple([(name, _constant(name, value) or form_of(value)) for name, value in values.items()])


def _constant(name: str, value: Any) -> str | None:
    if name in _OF_A_KIND:
        if type(value) is int:
            return str(value)
        if isinstance(value, str) and _NEEDS_NO_QUOTING(value):
            return f"'{value}'"
    return None


@functools.lru_cache(maxsize=256)
def _head(vendor: str, alias: str, names: tuple[str, ...], unless_there: bool) -> tuple[str, str]:
    """What comes before and after the rows. The vendor is an argument because tests change what an alias means."""
    ops = connections[alias].ops
    conflict = OnConflict.IGNORE if unless_there else None
    columns = ", ".join(map(ops.quote_name, (*names, *(name for name in _NEW if name not in names))))
    into = f"{ops.insert_statement(on_conflict=conflict)} {ops.quote_name(Job._meta.db_table)}"
    return f"{into} ({columns}) VALUES ", f" {ops.on_conflict_suffix_sql([], conflict, [], [])}"


@functools.lru_cache(maxsize=1024)
def _row(vendor: str, alias: str, shape: Shape) -> str:
    names = {name for name, _ in shape}
    values = [sql_of(connections[alias], form) for _, form in shape]
    values += [repr(constant) for name, constant in _NEW.items() if name not in names]
    return f"({', '.join(values)})"


def _blocks(connection: Any, batch: Iterable[_Values]) -> Iterator[list[_Values]]:
    """As many rows as one statement may hold."""
    rows = iter(batch)
    for first in rows:
        most = connection.features.max_query_params
        size = min(_BLOCK, most // len(first)) if most else _BLOCK
        yield [first, *itertools.islice(rows, size - 1)]


def _insert_block(connection: Any, cursor: Any, block: Sequence[_Values], unless_there: bool = False) -> None:
    vendor, alias = connection.vendor, connection.alias
    head, suffix = _head(vendor, alias, tuple(block[0]), unless_there)
    texts, params = [], []
    for values in block:
        shape = _shape(values)
        texts.append(_row(vendor, alias, shape))
        params += params_of(connection, shape, values)
    cursor.execute(head + ", ".join(texts) + suffix, params)


# --- COPY -------------------------------------------------------------------------------------------------------------


def _copy(connection: Any, cursor: Any, common: Mapping[str, Any], each: Iterable[Each]) -> None:
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
    jobs = iter(each)
    # Taken before each COPY and not during it: the caller's generator may want this connection.
    while block := list(itertools.islice(jobs, _COPY_ROWS)):
        with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
            for start in range(0, len(block), _COPY_WRITE):
                copy.write(
                    "".join(
                        f"{job_id.hex}\t{root or job_id.hex}\t\\\\x{body.hex()}\t{_escaped(envelope)}\t{rest}"
                        for job_id, body, envelope in block[start : start + _COPY_WRITE]
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
