"""A message ⇄ the columns of a row: what both have in common, and the way from the row to the broker.

The other way, from a call to the row, is enqueue/render.py's; reading what a row holds is message/decode.py's.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.utils import json as kombu_json

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from reliable_jobs.models import Job

#: Name of the message header that marks a message as a pointer to a row.
HEADER = "reliable_jobs"
#: What the pointer holds: the row's content version, its database, the number of this send, and of the requeues so far.
POINTER = ("content_version", "using", "send", "requeues")
ENVELOPE_VERSION = 1
#: What Celery's message has in its headers unless somebody asked for something else. A row does not repeat it: most of
#: the bytes of a small job would be these. ``id``, ``root_id`` and ``task`` come from the row's columns likewise.
USUAL_HEADERS: Mapping[str, Any] = {
    "lang": "py",
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "parent_id": None,
    "argsrepr": "()",
    "kwargsrepr": "{}",
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
#: Names under which kombu knows it; never written, never loaded.
PICKLE = ("pickle", "application/x-python-serialize")


@dataclasses.dataclass(slots=True, eq=False)
class RowToSend:
    """The columns that a message is made of, and how often it has been sent: all that is read of a row that is
    published. Django takes several times as long to make a Job of them."""

    pk: uuid.UUID
    task: str
    queue: str
    priority: int | None
    content_version: int
    sends: int
    requeues: int
    failures: int
    relay_only: bool
    payload: bytes
    content_type: str
    content_encoding: str
    envelope: str

    @classmethod
    def each(cls, rows: QuerySet[Job]) -> list[RowToSend]:
        """The rows of a query."""
        return [cls(*values) for values in rows.values_list("pk", *SENT)]


#: Those columns, without the primary key.
SENT = tuple(field.name for field in dataclasses.fields(RowToSend))[1:]


@dataclasses.dataclass(frozen=True)
class Rendered:
    """What Celery made of one call: the message columns of a row."""

    task: str
    queue: str
    priority: int | None
    payload: bytes
    content_type: str
    content_encoding: str
    envelope: str
    root_id: uuid.UUID | None
    parent_id: uuid.UUID | None
    #: The group that its row owes.
    debt: Debt | None = None


class Debt(NamedTuple):
    """A group, and the body that it waits to start: a signature, or a stub of it. See message/debts.py."""

    group_id: uuid.UUID
    body: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Outgoing:
    """A message ready for the broker. ``id`` is the job's, carried as ``message_id`` to tell returned ones apart."""

    id: uuid.UUID
    queue: str
    exchange: str
    routing_key: str
    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    #: Of a row that ends with the broker's confirm, its database.
    relayed_from: str = ""


_FOREIGN = uuid.UUID("6f3c7e52-9a0e-5b57-8c55-1f4ad4a3c0de")


def foreign_id(task_id: Any) -> uuid.UUID:
    """The row's id for any Celery task id: itself where it is a UUID, one derived from it otherwise."""
    try:
        return uuid.UUID(str(task_id))
    except ValueError:
        return uuid.uuid5(_FOREIGN, str(task_id))


def as_uuid(value: Any) -> uuid.UUID | None:
    """The value as a UUID, or None where it is none."""
    try:
        return uuid.UUID(str(value))
    except ValueError:
        return None


def as_key(value: Any) -> str | None:
    """An idempotency key as the row holds it: text, a whole number or a UUID (both are primary keys) as text; None for
    what is no key: another type, or a text that is empty, longer than 255 characters or holds NUL."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(int(value))
    elif isinstance(value, uuid.UUID):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= 255 or "\0" in value:
        return None
    return str.__str__(value)  # of an Enum's member: its value


def outgoing(job: Job | RowToSend, using: str) -> Outgoing:
    """The broker message for a row: what Celery rendered, plus the pointer (version, alias, number of the send).

    The row's ``sends`` is the number of this send, so it has been raised.
    """
    going = _outgoing(job.pk, job, (job.content_version, using, job.sends, job.requeues), job.relay_only)
    if job.failures:
        going.headers["retries"] = job.failures  # for monitors; a run reads the row
    return going


def first_outgoing(
    job_id: uuid.UUID, rendered: Rendered, using: str, *, relay_only: bool = False, content_version: int = 0
) -> Outgoing:
    """The same for a row that is being written, and the first time it is sent."""
    return _outgoing(job_id, rendered, (content_version, using, 1, 0), relay_only)


def _outgoing(
    job_id: uuid.UUID, columns: Job | RowToSend | Rendered, pointer: tuple[int, str, int, int], relay_only: bool
) -> Outgoing:
    # Most hold no value of a type that JSON does not know; looking for those takes four fifths of the time.
    envelope = (kombu_json if '"__type__"' in columns.envelope else json).loads(columns.envelope)
    text = str(job_id)
    headers = {**USUAL_HEADERS, "id": text, "root_id": text, "task": columns.task, **envelope["headers"]}
    if not relay_only:
        headers[HEADER] = dict(zip(POINTER, pointer, strict=True))
    properties = {"delivery_mode": 2, **envelope["properties"], "message_id": text, "correlation_id": headers["id"]}
    if columns.priority is not None:
        properties["priority"] = columns.priority
    return Outgoing(
        id=job_id,
        queue=columns.queue,
        exchange=envelope["exchange"],
        routing_key=envelope["routing_key"],
        body=bytes(columns.payload),
        content_type=columns.content_type,
        content_encoding=columns.content_encoding,
        headers=headers,
        properties=properties,
        relayed_from=pointer[1] if relay_only else "",
    )


def headers_of(envelope_text: str) -> dict[str, Any]:
    """The headers that a row keeps; without the usual ones."""
    return dict(json.loads(envelope_text).get("headers") or {})


def rerouted(envelope_text: str, queue: str) -> str:
    """The envelope sent to another queue through the default exchange."""
    envelope = json.loads(envelope_text)
    envelope.update(exchange="", routing_key=queue)
    return json.dumps(envelope)
