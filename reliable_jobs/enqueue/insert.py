"""From a call to its row, and new rows into the table: one INSERT for a job, COPY (or INSERTs of many rows) for
thousands.

Django's ORM would compile the statement anew for each job, which was most of what an enqueue cost.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import os
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from django.conf import settings as django_settings
from django.db import connections

from reliable_jobs.compat.django import djangos_errors, most_parameters
from reliable_jobs.compat.django_transaction import doomed_by_error
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import sql
from reliable_jobs.message.row_to_message import Rendered

#: Rows of one INSERT where there is no COPY, and where the database takes that many parameters.
_BLOCK = 500
#: The seventeenth digit of a UUID, made one of RFC 9562.
_VARIANT = {f"{digit:x}": "89ab"[digit & 3] for digit in range(16)}
#: Rows of one write to a COPY.
_COPY_WRITE = 100


@dataclasses.dataclass
class Request:
    """One call of ``apply_async``, rendered and with its times taken out of the message."""

    job_id: uuid.UUID
    rendered: Rendered
    countdown: float | None = None
    eta: datetime.datetime | None = None
    expires: datetime.datetime | float | None = None
    key: str | None = None
    key_forever: bool = False
    #: The caller named the id, so it may exist already.
    id_given: bool = False
    #: A step of a workflow that a settlement writes: where its id exists, that job stays as it is.
    follows: bool = False
    #: The task is not a reliable one.
    relay_only: bool = False
    #: The job whose failure this one is told of.
    errback_of: uuid.UUID | None = None


class New(NamedTuple):
    """A new row, in the order of the parameters of ``sql.INSERT``. Times in seconds count from the INSERT, by the
    database's clock."""

    id: uuid.UUID
    task: str
    queue: str
    priority: int | None
    sends: int
    key: str | None
    live_key: str | None
    key_forever: bool
    payload: bytes
    content_type: str
    content_encoding: str
    envelope: str
    root_id: uuid.UUID | None
    parent_id: uuid.UUID | None
    #: Due after so many seconds, and not before that moment.
    due_in: float
    not_before: datetime.datetime | None
    #: Seconds to the sweeper's first look; None where no message is sent.
    check_in: float | None
    #: Not begun after that moment, or after so many seconds.
    expires_at: datetime.datetime | None
    expires_in: float | None
    #: Of jobs of workflows only, in the order of ``sql.WORKFLOW``.
    workflow: tuple[Any, ...] = ()

    @property
    def columns(self) -> dict[str, Any]:
        """By name, without the id."""
        names = list(New.__annotations__)[:-1]
        marks = dict(zip(sql.WORKFLOW, self.workflow or sql.NO_WORKFLOW, strict=True))
        return {**dict(zip(names[1:], self[1:], strict=False)), **marks}


class Each(NamedTuple):
    """What sets one of many jobs apart."""

    id: str
    payload: bytes
    envelope: str


def _seconds_until(moment: Any) -> Any:
    """Seconds from now until a time, by this machine's clock; anything else as it is."""
    if isinstance(moment, datetime.datetime):
        return (moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    return moment


def new_row(request: Request, *, later: bool, sends: int, owes: uuid.UUID | None = None, place: str = "") -> New:
    """The row of a call.

    Args:
        later: the job is not to start now.
        sends: 1 where the commit publishes it.
        owes, place: the group that waits for it, and its place there.
    """
    rendered = request.rendered
    in_workflow = request.relay_only or request.errback_of or owes
    eta, expires = request.eta, request.expires
    if not django_settings.USE_TZ:
        # The database's times are naive then, and in a zone that depends on the database: what lies between is not.
        eta, expires = None, _seconds_until(expires)
    due_in = 0.0
    if eta is None and later:
        due_in = _seconds_until(request.eta) or request.countdown or 0.0
    return New(
        id=request.job_id,
        task=rendered.task,
        queue=rendered.queue,
        priority=rendered.priority,
        sends=sends,
        key=request.key,
        live_key=request.key,
        key_forever=request.key_forever,
        payload=rendered.payload,
        content_type=rendered.content_type,
        content_encoding=rendered.content_encoding,
        envelope=rendered.envelope,
        root_id=rendered.root_id,
        parent_id=rendered.parent_id,
        due_in=float(due_in),
        # By the database's clock, however fast this machine's runs.
        not_before=eta,
        check_in=settings.GRACE if sends else None,
        expires_at=expires if isinstance(expires, datetime.datetime) else None,
        expires_in=expires if isinstance(expires, (int, float)) else None,
        workflow=(request.relay_only, request.errback_of, owes, place) if in_workflow else (),
    )


def insert(alias: str, new: New, *, unless_there: bool = False) -> bool:
    """Insert one row; says whether it was.

    Args:
        unless_there: do nothing where the id or the key exists already.

    Raises:
        django.db.Error: as any write.
    """
    # As the ORM does: a caller that catches the error must not commit what PostgreSQL has given up.
    values = (*new[:-1], *new.workflow)
    if new.workflow:
        statement = sql.INSERT_IN_WORKFLOW_UNLESS_THERE if unless_there else sql.INSERT_IN_WORKFLOW
    else:
        statement = sql.INSERT_UNLESS_THERE if unless_there else sql.INSERT
    with doomed_by_error(alias):
        return sql.write(alias, statement, *values) == 1


def random_ids() -> Iterator[str]:
    """Random UUIDs (version 4) as text, without an end. ``str(uuid.uuid4())`` would be a third of what a job of a bulk
    costs its caller: 3.4 of 11 µs."""
    while True:
        digits = os.urandom(16 * 100).hex()
        for at in range(0, len(digits), 32):
            one = digits[at : at + 32]
            yield f"{one[:8]}-{one[8:12]}-4{one[13:16]}-{_VARIANT[one[16]]}{one[17:20]}-{one[20:]}"


def insert_many(alias: str, common: New, blocks: Iterable[Iterable[Each]]) -> None:
    """Insert many rows that differ in id, payload and envelope only, in the caller's open transaction.

    Args:
        common: what they have in common. Without a ``root_id`` each is its own root.
        blocks: a COPY is made of each, and its rows are made while the server takes in those before them. What makes
            the blocks may use the database; what makes a row must not, the driver would wait for ever.

    Raises:
        django.db.Error: as any write.
    """
    connection = connections[alias]
    with doomed_by_error(alias), connection.cursor() as cursor:
        if connection.vendor == "postgresql" and hasattr(cursor, "copy"):
            _copy(connection, cursor, common, blocks)
        else:
            _insert_each(connection, cursor, common, itertools.chain.from_iterable(blocks))


def _insert_each(connection: Any, cursor: Any, common: New, each: Iterable[Each]) -> None:
    rows = iter(each)
    most = most_parameters(connection)
    size = min(_BLOCK, most // (len(common) - 1)) if most else _BLOCK
    while block := list(itertools.islice(rows, size)):
        params: list[Any] = []
        for job in block:
            job_id = uuid.UUID(job.id)
            root_id = common.root_id or job_id
            new = common._replace(id=job_id, root_id=root_id, payload=job.payload, envelope=job.envelope)
            params += new[:-1]
        cursor.execute(sql.in_words(connection, sql.INSERT, len(block)), sql.prepared(connection, params))


def _copy(connection: Any, cursor: Any, common: New, blocks: Iterable[Iterable[Each]]) -> None:
    """PostgreSQL's text format, made by hand: what the driver's row by row would do took most of the time."""
    cursor.execute(
        sql.in_words(connection, sql.NEW_TIMES),
        [common.due_in, common.not_before, common.check_in, common.expires_at, common.expires_in],
    )
    values = (
        *cursor.fetchone(),
        *(common.task, common.queue, common.priority, common.sends, common.key, common.live_key, common.key_forever),
        *(common.content_type, common.content_encoding, common.parent_id),
        *sql.COPIED_TO_ALL,
    )
    rest = "\t".join(map(_as_text, values)) + "\n"
    statement = sql.in_words(connection, sql.COPY)
    for block in blocks:
        jobs = iter(block)
        with djangos_errors(connection), cursor.copy(statement) as copy:
            while part := list(itertools.islice(jobs, _COPY_WRITE)):
                copy.write(
                    "".join(
                        f"{job_id}\t{common.root_id or job_id}\t\\\\x{payload.hex()}\t{_escaped(envelope)}\t{rest}"
                        for job_id, payload, envelope in part
                    )
                )


def _as_text(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return _escaped(str(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
