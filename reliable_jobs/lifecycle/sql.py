"""The statements that nearly every job needs, as SQL: claims, successes, new rows. Django takes longer to compile one
than PostgreSQL to carry it out. All others are Django's: failures and retries, by ``transition`` in transition.py.

Of rows that are told by their ids the status is asked with IS TRUE: see JobQuerySet.still().

A word in braces differs from database to database: :func:`in_words` says what it stands for. A ``%s`` is a parameter.
"""

from __future__ import annotations

import datetime
import functools
import uuid
from collections.abc import Sequence
from typing import Any

from django.db import connections
from django.db.models import BinaryField, DateTimeField, UUIDField

from reliable_jobs.clock import from_now_sql, now_sql
from reliable_jobs.compat.django import skips_locked, zone_of
from reliable_jobs.message.row_to_message import SENT
from reliable_jobs.models import CancelledWorkflow, Job, JobGroup, Pause

# --- The statements ---------------------------------------------------------------------------------------------------

#: How the statements begin that each run says: run/prepared.py has them planned once. The type of each of their
#: parameters is plain.
OF_EACH_RUN = "/* each run */"

#: A job that arrived: lock its row, if nobody holds it. The conditions are looked at afterwards: each has its answer.
#: PostgreSQL takes longer to plan this than to do it, so it asks in a cheaper way: about the workflow that the message
#: names, and not the row (0.12 ms less of 0.39), and whether anything at all is paused (0.09 ms less).
LOCK_ROW = """
    /* each run */ SELECT {claimed}, EXISTS (SELECT 1 FROM {cancelled} WHERE root_id = %s),
        EXISTS (SELECT 1 FROM {pause}), {now}
    FROM {job}
    WHERE id = %s
    {for_update}
"""

#: Asked of a locked row of another workflow than its message names.
WORKFLOW_CANCELLED = "SELECT {workflow_cancelled} FROM {job} WHERE id = %s"

#: Asked of a locked row while anything is paused.
PAUSED_BY = "SELECT {paused_by} FROM {job} WHERE id = %s"

#: Due rows of a queue, the oldest first: locked as far as that can be done at once, counted as sent, and read
#: (PostgreSQL).
SEND_DUE = """
    UPDATE {job}
    SET sends = 1, check_at = {from_now}
    WHERE id = ANY (ARRAY(
        SELECT id FROM {job} WHERE status = 'waiting' AND sends = 0 AND queue = %s AND due_at <= {now}
        ORDER BY due_at LIMIT %s {for_update}
    ))
    RETURNING id, {sent}, due_at
"""

#: The jobs of a bundle: lock those that are plainly fit for a first run, with all that their messages are made of.
LOCK_BUNDLE = """
    SELECT {claimed_and_sent}, {now}
    FROM {job}
    WHERE task = %s AND (status = 'waiting') IS TRUE AND due_at <= {now}
        AND failures = 0 AND crashes = 0 AND interruptions = 0 AND id IN ({ids})
        AND NOT {workflow_cancelled} AND {paused_by} IS NULL
    {for_update}
"""

#: A committed claim: count the start as a crash until it reports.
CLAIM = """
    UPDATE {job}
    SET status = 'running', token = %s, lease_at = {from_now}, deadline_at = {from_now}, crashes = crashes + 1,
        started_at = COALESCE(started_at, {now}), run_started_at = {now}, worker = %s, "release" = %s, epoch = epoch + 1
    WHERE id = %s AND epoch = %s AND (status = 'waiting') IS TRUE
"""

#: The end of a first run, which holds the row's lock. Whether what follows it owes now what it owed is a parameter.
SUCCEED_FIRST_RUN = """
    /* each run */ UPDATE {job}
    SET status = 'succeeded', reason = %s, result = %s, error = '', error_class = '', traceback = '', exception = NULL,
        subtasks = %s, worker = %s, "release" = %s, started_at = COALESCE(started_at, %s), run_started_at = %s,
        finished_at = {now}, deadline_at = NULL, live_key = CASE WHEN key_forever THEN live_key END,
        owes = CASE WHEN %s THEN NULL ELSE owes END, epoch = epoch + 1
    WHERE id = %s AND epoch = %s AND (status = 'waiting') IS TRUE
"""

#: The same of a run that was interrupted before, maybe by its session having forgotten what it had prepared.
SUCCEED_INTERRUPTED = SUCCEED_FIRST_RUN.replace(OF_EACH_RUN, "")

#: The end of a run with a committed claim, which gives its crash back. Of a task that never runs again all are such.
SUCCEED_BY_TOKEN = """
    UPDATE {job}
    SET status = 'succeeded', reason = %s, result = %s, error = '', error_class = '', traceback = '', exception = NULL,
        subtasks = %s, worker = %s, "release" = %s, started_at = COALESCE(started_at, %s),
        run_started_at = COALESCE(run_started_at, %s), finished_at = {now}, deadline_at = NULL,
        crashes = crashes - 1, token = NULL, lease_at = NULL,
        live_key = CASE WHEN key_forever THEN live_key END, owes = CASE WHEN %s THEN NULL ELSE owes END,
        epoch = epoch + 1
    WHERE id = %s AND token = %s AND (status = 'running') IS TRUE
"""

#: The end of a bundle's first runs (PostgreSQL).
SUCCEED_MANY = """
    UPDATE {job} AS job
    SET status = 'succeeded', reason = '', result = done.result, error = '', error_class = '', traceback = '',
        exception = NULL, subtasks = done.subtasks, worker = %s, "release" = %s,
        started_at = COALESCE(job.started_at, %s), run_started_at = %s, finished_at = {now},
        deadline_at = NULL, live_key = CASE WHEN job.key_forever THEN job.live_key END, epoch = job.epoch + 1
    FROM unnest(%s::uuid[], %s::integer[], %s::text[], %s::text[]) AS done (id, epoch, result, subtasks)
    WHERE job.id = done.id AND job.epoch = done.epoch AND (job.status = 'waiting') IS TRUE
"""

_INTO = """
    INTO {job} (id, task, queue, priority, sends, "key", live_key, key_forever, payload, content_type, content_encoding,
        envelope, root_id, parent_id, due_at, check_at, expires_at, created_at,
        status, reason, error, traceback, worker, epoch, content_version, failures, crashes, interruptions, requeues)
    VALUES {rows}
"""
_ROW = """
    (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, {new_times}, {now},
        'waiting', '', '', '', '', 0, 0, 0, 0, 0, 0)
"""
#: When it is due: so many seconds from now, and not before that moment; when the sweeper first looks: so many seconds
#: from now; after what moment it is not begun, or how many seconds from now.
_NEW_TIMES = "{later_of}({from_now}, COALESCE(%s, {now})), {from_now}, COALESCE(%s, {from_now})"

#: New jobs.
INSERT = f"INSERT {_INTO}"

#: A new job; or nothing, where its id or its key exists.
INSERT_UNLESS_THERE = f"INSERT {{or_ignore}} {_INTO} {{on_conflict}}"

#: What only the jobs of workflows have, after the columns of INSERT.
WORKFLOW = ("relay_only", "errback_of", "owes", "place")
NO_WORKFLOW = (False, None, None, "")
_INTO_OF_WORKFLOW = _INTO.replace("requeues)", f"requeues, {', '.join(WORKFLOW)})").replace("{rows}", "{workflow_rows}")
INSERT_IN_WORKFLOW = f"INSERT {_INTO_OF_WORKFLOW}"
INSERT_IN_WORKFLOW_UNLESS_THERE = f"INSERT {{or_ignore}} {_INTO_OF_WORKFLOW} {{on_conflict}}"

#: New jobs by the thousand (PostgreSQL): COPY takes values only, so the times are asked for.
NEW_TIMES = "SELECT {new_times}"
COPY = """
    COPY {job} (id, root_id, payload, envelope, due_at, check_at, expires_at, task, queue, priority, sends, key,
        live_key, key_forever, content_type, content_encoding, parent_id,
        status, reason, error, traceback, worker, epoch, content_version, failures, crashes, interruptions, requeues)
    FROM STDIN
"""
#: The last columns of a COPY.
COPIED_TO_ALL = ("waiting", "", "", "", "", 0, 0, 0, 0, 0, 0)

# --- Their words ------------------------------------------------------------------------------------------------------

_WANTED = {
    *(
        "id",
        "task",
        "queue",
        "status",
        "due_at",
        "expires_at",
        "epoch",
        "content_version",
        "deadline_at",
        "failures",
        "crashes",
    ),
    *("interruptions", "live_key", "key_forever", "created_at", "started_at", "root_id", "errback_of", "owes", "place"),
}
_COLUMNS = tuple(field.attname for field in Job._meta.concrete_fields)
#: What a claim wants to know of its row, in the model's order; anything else is read when somebody asks for it.
CLAIMED = tuple(name for name in _COLUMNS if name in _WANTED)
CLAIMED_AND_SENT = tuple(name for name in _COLUMNS if name in _WANTED or name in SENT)

#: Whether the job's workflow was cancelled; see workflows.py.
_WORKFLOW_CANCELLED = "EXISTS (SELECT 1 FROM {cancelled} AS workflow WHERE workflow.root_id = {job}.root_id)"

#: What pauses the job: "queue", "task" or NULL; see pauses.py.
_PAUSED_BY = """(SELECT MIN(pause.kind) FROM {pause} AS pause WHERE pause.kind = 'queue' AND pause.name = {job}.queue
    OR pause.kind = 'task' AND pause.name = {job}.task)"""

_BY_VENDOR = {
    # NO KEY UPDATE: see JobQuerySet.lock().
    "postgresql": {"for_update": "FOR NO KEY UPDATE", "later_of": "GREATEST", "on_conflict": "ON CONFLICT DO NOTHING"},
    "mysql": {"for_update": "FOR UPDATE", "later_of": "GREATEST", "or_ignore": "IGNORE"},
    # The transaction's write lock stands in for the row's.
    "sqlite": {"for_update": "", "later_of": "MAX", "or_ignore": "OR IGNORE"},
}


def in_words(connection: Any, text: str, count: int = 1) -> str:
    """A statement in the words of a database.

    Args:
        count: of ids, or of rows.
    """
    # A text of hundreds of rows is tens of kilobytes, and one for every number of them would be kept.
    make = _in_words if count <= 100 else _in_words.__wrapped__
    return make(text, connection.vendor, zone_of(connection) == "UTC", skips_locked(connection), count)


@functools.lru_cache(maxsize=1024)
def _in_words(text: str, vendor: str, utc: bool, skips: bool, count: int) -> str:
    """Everything that it depends on is among the arguments: tests change what an alias means, and the time zone."""
    words = {"on_conflict": "", "or_ignore": "", **_BY_VENDOR[vendor]}
    words.update(now=now_sql(vendor, utc), from_now=from_now_sql(vendor, utc))
    words["for_update"] += " SKIP LOCKED" if skips else ""
    words["new_times"] = _NEW_TIMES.format(**words)
    models = {"job": Job, "cancelled": CancelledWorkflow, "pause": Pause}
    tables = {name: f'"{model._meta.db_table}"' for name, model in models.items()}
    made = text.format(
        **words,
        **tables,
        workflow_cancelled=_WORKFLOW_CANCELLED.format(**tables),
        paused_by=_PAUSED_BY.format(**tables),
        group=f'"{JobGroup._meta.db_table}"',
        claimed=", ".join(CLAIMED),
        claimed_and_sent=", ".join(CLAIMED_AND_SENT),
        sent=", ".join(SENT),
        ids=", ".join(["%s"] * count),
        rows=", ".join([_ROW.format(**words)] * count),
        workflow_rows=_ROW.format(**words).rstrip()[:-1] + ", %s" * len(WORKFLOW) + ")",
    )
    return " ".join((made.replace('"', "`") if vendor == "mysql" else made).split())


# --- Their use --------------------------------------------------------------------------------------------------------

_FIELDS: dict[type, Any] = {uuid.UUID: UUIDField(), datetime.datetime: DateTimeField(), bytes: BinaryField()}


def prepared(connection: Any, values: Sequence[Any]) -> list[Any]:
    """Parameters as the database's driver takes them."""
    ready = list(values)
    for position, value in enumerate(ready):
        if value is not None and not isinstance(value, (str, int, float)):
            field = _FIELDS.get(type(value)) or next(
                (_FIELDS[kind] for kind in _FIELDS if isinstance(value, kind)), None
            )
            if field is not None:
                ready[position] = field.get_db_prep_value(value, connection)
    return ready


def write(alias: str, text: str, *values: Any) -> int:
    """Carry out one of the statements that write; returns how many rows it changed."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(in_words(connection, text), prepared(connection, values))
        return int(cursor.rowcount)


def rows(alias: str, text: str, *values: Any) -> list[tuple[Any, ...]]:
    """What one of the statements that read finds."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(in_words(connection, text), prepared(connection, values))
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found
