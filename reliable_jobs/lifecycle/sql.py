"""The statements that every job takes part in, compiled once for each shape instead of once for each job.

Django's compiler takes five to ten times as long for the claim and the settlement as PostgreSQL does. What it makes of
them is the same each time, so it is kept; values are prepared, and columns converted, by Django's own fields.
"""

from __future__ import annotations

import datetime
import functools
import re
import uuid
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

from django.core.signals import setting_changed
from django.db import connections
from django.db.models import DateTimeField, Value
from django.db.models.base import ModelState
from django.db.models.functions import Greatest

from reliable_jobs.clock import Now
from reliable_jobs.models import Job
from reliable_jobs.status import Reason, Status

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
_SOME_ID, _SOME_TASK = uuid.UUID(int=0), "some task"
_needs_no_quoting = re.compile(r"[A-Za-z0-9_./:@+-]+").fullmatch
_SOME_TIME = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)


class Moment(NamedTuple):
    """A time by the database's clock: ``delay`` seconds from now; or now, but not before ``at``."""

    delay: float = 0.0
    at: datetime.datetime | None = None


#: Of one value: a moment of its kind, the SQL of a constant, or None for a placeholder.
Form = Moment | str | None
#: What a statement is kept by: the forms of its values, by field name.
Shape = tuple[tuple[str, Form], ...]


def sql_of(connection: Any, form: Form) -> str:
    """The SQL of a value in an INSERT or UPDATE."""
    if isinstance(form, Moment):
        return _compiled(connection.vendor, connection.alias, form)[0]
    return "%s" if form is None else form


def shape_of(values: Mapping[str, Any], of_a_kind: Container[str] = ()) -> Shape:
    """The forms of some values.

    Args:
        of_a_kind: names of fields whose values are written into the statement, because many rows have the same. Half of
            the driver's work, and some of the server's, is parameters.
    """
    return tuple([(name, _form_of(value, name in of_a_kind)) for name, value in values.items()])


def _form_of(value: Any, of_a_kind: bool) -> Form:
    if isinstance(value, Moment):
        if value.at is not None:
            return Moment(at=_SOME_TIME)
        return Moment(delay=1.0) if value.delay else value
    if value is None:
        return "NULL"
    if of_a_kind and type(value) is int:
        return str(value)
    if isinstance(value, (Status, Reason)) or (isinstance(value, str) and not value):
        return f"'{value}'"
    if of_a_kind and type(value) is str and _needs_no_quoting(value):
        return f"'{value}'"
    return None


def params_of(connection: Any, shape: Shape, values: Mapping[str, Any]) -> list[Any]:
    """What the placeholders of a shape stand for.

    Args:
        values: those that have that shape.
    """
    params: list[Any] = []
    for (name, form), value in zip(shape, values.values(), strict=True):
        if form is None:
            if not isinstance(value, (str, int)):
                field: Any = Job._meta.get_field(name)
                value = field.get_db_prep_save(value, connection)
            params.append(value)
        elif isinstance(form, Moment):
            params.extend(_compiled(connection.vendor, connection.alias, value)[1])
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
    found = _select(connection, _lock_row(connection.vendor, alias), [job_id])
    return found[0] if found else None


def lock_fit(alias: str, task: str, job_ids: Sequence[uuid.UUID]) -> list[tuple[Job, datetime.datetime]]:
    """Lock those jobs of a task that are plainly fit for a first run, as far as that can be done at once; with all that
    a message is made of. Must be called in a transaction."""
    connection = connections[alias]
    return _select(connection, _lock_fit(connection.vendor, alias, len(job_ids)), job_ids, task)


class _Select(NamedTuple):
    sql: str
    #: After the ids; ``_SOME_TASK`` stands for the task's name.
    rest: tuple[Any, ...]
    names: tuple[str, ...]
    converters: list[tuple[int, list[Callable[..., Any]], Any]]


def _select(
    connection: Any, made: _Select, job_ids: Sequence[uuid.UUID], task: str = ""
) -> list[tuple[Job, datetime.datetime]]:
    prepare = Job._meta.pk.get_db_prep_value
    params = [prepare(job_id, connection) for job_id in job_ids]
    params += [task if param == _SOME_TASK else param for param in made.rest]
    with connection.cursor() as cursor:
        cursor.execute(made.sql, params)
        rows = cursor.fetchall()
    return [_job(connection, made, list(row)) for row in rows]


def _job(connection: Any, made: _Select, values: list[Any]) -> tuple[Job, datetime.datetime]:
    for position, converters, expression in made.converters:
        for convert in converters:
            values[position] = convert(values[position], expression, connection)
    now = values.pop()
    # What from_db() comes to, in a tenth of the time: most of that goes into the columns that were not read. Django's
    # signals pre_init and post_init are not sent.
    job = Job.__new__(Job)
    job._state = ModelState()
    job._state.db, job._state.adding = connection.alias, False
    vars(job).update(zip(made.names, values, strict=True))
    return job, now


@functools.lru_cache(maxsize=64)
def _lock_row(vendor: str, alias: str) -> _Select:
    return _compiled_select(alias, Job.objects.using(alias).filter(pk=_SOME_ID), CLAIMED, 1)


@functools.lru_cache(maxsize=256)
def _lock_fit(vendor: str, alias: str, count: int) -> _Select:
    these = Job.objects.using(alias).filter(pk__in=[uuid.UUID(int=number) for number in range(count)])
    rows = these.filter(
        task=_SOME_TASK, status=Status.WAITING, due_at__lte=Now(), attempt=0, crashes=0, interruptions=0
    )
    wanted = {*CLAIMED, *SENT}
    names = tuple(field.attname for field in Job._meta.concrete_fields if field.attname in wanted)
    return _compiled_select(alias, rows, names, count)


def _compiled_select(alias: str, rows: Any, names: tuple[str, ...], ids: int) -> _Select:
    connection = connections[alias]
    query = rows.annotate(now=Now()).lock().values_list(*names, "now").query
    compiler = query.get_compiler(alias)
    sql, params = compiler.as_sql()
    converters = []
    for position, (expression, _, _) in enumerate(compiler.select):
        wanted = connection.ops.get_db_converters(expression) + expression.get_db_converters(connection)
        if wanted:
            converters.append((position, wanted, expression))
    assert all(type(param) is type(params[0]) for param in params[:ids]), params
    return _Select(sql, tuple(params)[ids:], names, converters)


def update(alias: str, job_id: uuid.UUID, fence: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """One conditional UPDATE of one row, which raises the epoch; says whether it won.

    Args:
        fence: what the row must hold, by field name; never None.
        changes: what it is to hold then. Times are datetimes or moments.
    """
    connection = connections[alias]
    conditions, shape = shape_of(fence), shape_of(changes)
    params = [*params_of(connection, shape, changes), Job._meta.pk.get_db_prep_value(job_id, connection)]
    params += params_of(connection, conditions, fence)
    with connection.cursor() as cursor:
        cursor.execute(_update(connection.vendor, alias, conditions, shape), params)
        return bool(cursor.rowcount == 1)


@functools.lru_cache(maxsize=256)
def _update(vendor: str, alias: str, fence: Shape, shape: Shape) -> str:
    connection = connections[alias]
    quote = connection.ops.quote_name
    changes = [f"{quote(name)} = {sql_of(connection, form)}" for name, form in shape]
    changes.append(f"{quote('epoch')} = {quote('epoch')} + 1")
    conditions = " AND ".join(f"{quote(name)} = {sql_of(connection, form)}" for name, form in (("id", None), *fence))
    return f"UPDATE {quote(Job._meta.db_table)} SET {', '.join(changes)} WHERE {conditions}"


def _forget(*, setting: str, **kwargs: Any) -> None:
    """The clock's SQL depends on the zone that Django stores times in, which tests change."""
    if setting in ("USE_TZ", "TIME_ZONE"):
        for cached in (_compiled, _lock_row, _lock_fit, _update):
            cached.cache_clear()


setting_changed.connect(_forget, dispatch_uid="reliable_jobs.sql")
