"""The statements that every job takes part in, compiled once for each shape instead of once for each job.

Django's compiler takes five to ten times as long for the claim and the settlement as PostgreSQL does. What it makes of
them is the same each time, so it is kept; values are prepared, and columns converted, by Django's own fields.
"""

from __future__ import annotations

import datetime
import functools
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import DateTimeField, Value
from django.db.models.functions import Greatest, Now

from reliable_jobs.models import Job

_WANTED = {
    *("id", "task", "status", "due_at", "expires_at", "epoch", "rev", "deadline_at", "attempt", "crashes"),
    *("interruptions", "live_key", "key_forever", "started_at"),
}
#: What a claim wants to know of its row, in the model's order; anything else is read when somebody asks for it.
CLAIMED = tuple(field.attname for field in Job._meta.concrete_fields if field.name in _WANTED)
#: What a message is made of, and how often it has been sent: all that is read of a row that is published.
SENT = (
    *("task", "queue", "priority", "rev", "sends", "requeues"),
    *("body", "content_type", "content_encoding", "envelope"),
)
_SOME_ID = uuid.UUID(int=0)
_SOME_TIME = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)


class Moment(NamedTuple):
    """A time by the database's clock: ``delay`` seconds from now; or now, but not before ``at``."""

    delay: float = 0.0
    at: datetime.datetime | None = None


def sql_of(connection: Any, value: Any) -> str:
    """The SQL of a value in an INSERT or UPDATE: a placeholder, or what a moment becomes."""
    return _compiled(connection.vendor, connection.alias, value)[0] if isinstance(value, Moment) else "%s"


def shape_of(values: Mapping[str, Any]) -> tuple[tuple[str, Moment | None], ...]:
    """Names, and for moments which form their SQL has: what a statement is kept by."""
    return tuple((name, _form(value) if isinstance(value, Moment) else None) for name, value in values.items())


def _form(moment: Moment) -> Moment:
    if moment.at is not None:
        return Moment(at=_SOME_TIME)
    return Moment(delay=1.0) if moment.delay else moment


def params_of(connection: Any, values: Mapping[str, Any]) -> list[Any]:
    params: list[Any] = []
    for name, value in values.items():
        if isinstance(value, Moment):
            params.extend(_compiled(connection.vendor, connection.alias, value)[1])
        elif value is None or isinstance(value, (str, int)):
            params.append(value)
        else:
            field: Any = Job._meta.get_field(name)
            params.append(field.get_db_prep_save(value, connection))
    return params


@functools.lru_cache(maxsize=1024)
def _compiled(vendor: str, alias: str, moment: Moment) -> tuple[str, tuple[Any, ...]]:
    """The vendor is among the arguments because tests change what an alias means."""
    expression: Any = Now() + datetime.timedelta(seconds=moment.delay) if moment.delay else Now()
    if moment.at is not None:
        expression = Greatest(Now(), Value(moment.at, DateTimeField()))
    query = Job.objects.using(alias).query
    sql, params = query.get_compiler(alias).compile(expression.resolve_expression(query))
    return sql, tuple(params)


def lock_row(alias: str, job_id: uuid.UUID) -> tuple[Job, datetime.datetime] | None:
    """Lock a job's row where that can be done at once; the row, and the database's time.

    Must be called in a transaction.
    """
    connection = connections[alias]
    made = _lock_row(connection.vendor, alias)
    with connection.cursor() as cursor:
        cursor.execute(made.sql, [Job._meta.pk.get_db_prep_value(job_id, connection)])
        row = cursor.fetchone()
    if row is None:
        return None
    values = list(row)
    for position, converters, expression in made.converters:
        for convert in converters:
            values[position] = convert(values[position], expression, connection)
    now = values.pop()
    return Job.from_db(alias, CLAIMED, values), now


class _Select(NamedTuple):
    sql: str
    converters: list[tuple[int, list[Callable[..., Any]], Any]]


@functools.lru_cache(maxsize=64)
def _lock_row(vendor: str, alias: str) -> _Select:
    connection = connections[alias]
    rows = Job.objects.using(alias).filter(pk=_SOME_ID).annotate(now=Now()).lock().values_list(*CLAIMED, "now")
    compiler = rows.query.get_compiler(alias)
    sql, params = compiler.as_sql()
    assert len(params) == 1, params
    converters = []
    for position, (expression, _, _) in enumerate(compiler.select):
        wanted = connection.ops.get_db_converters(expression) + expression.get_db_converters(connection)
        if wanted:
            converters.append((position, wanted, expression))
    return _Select(sql, converters)


def update(alias: str, job_id: uuid.UUID, fence: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """One conditional UPDATE of one row, which raises the epoch; says whether it won.

    Args:
        fence: what the row must hold, by field name.
        changes: what it is to hold then. Times are datetimes or moments.
    """
    connection = connections[alias]
    sql = _update(connection.vendor, alias, tuple(fence), shape_of(changes))
    params = [*params_of(connection, changes), Job._meta.pk.get_db_prep_value(job_id, connection)]
    with connection.cursor() as cursor:
        cursor.execute(sql, params + params_of(connection, fence))
        return bool(cursor.rowcount == 1)


@functools.lru_cache(maxsize=256)
def _update(vendor: str, alias: str, fence: tuple[str, ...], shape: tuple[tuple[str, Moment | None], ...]) -> str:
    connection = connections[alias]
    quote = connection.ops.quote_name
    changes = [f"{quote(name)} = {sql_of(connection, form)}" for name, form in shape]
    changes.append(f"{quote('epoch')} = {quote('epoch')} + 1")
    conditions = " AND ".join(f"{quote(name)} = %s" for name in ("id", *fence))
    return f"UPDATE {quote(Job._meta.db_table)} SET {', '.join(changes)} WHERE {conditions}"
