"""A message in the worker's child, before its claim: what it says of itself, its row, and how it is held while the
database is away."""

from __future__ import annotations

import dataclasses
import datetime
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from celery.exceptions import Reject, SoftTimeLimitExceeded
from django.db import Error as DatabaseError
from django.db import connections
from kombu.serialization import dumps
from kombu.utils import json as kombu_json

from reliable_jobs import databases, lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.compat.django import driver_of, skip_health_check
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import db_errors
from reliable_jobs.lifecycle.delays import CONFLICTS_PASS, conflict_pause
from reliable_jobs.logs import job_logger
from reliable_jobs.message.row_to_message import ENVELOPE_VERSION, HEADER, as_uuid, foreign_id
from reliable_jobs.models import Job
from reliable_jobs.run.state import NotStarted
from reliable_jobs.run.trail import TRAIL

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask
    from reliable_jobs.workflow.following import Following

logger = job_logger(__name__)
_T = TypeVar("_T")

#: Where the request's delivery_info carries the message's :class:`Content`.
CONTENT = "reliable_content"
_HEADERS = (
    *("lang", "task", "id", "shadow", "group", "group_index", "retries", "timelimit", "root_id", "parent_id"),
    *("argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps"),
)
_here = threading.local()


class Content(NamedTuple):
    """A message's body, as it came. It shows nothing of itself: tracers write a delivery_info out as text."""

    content_type: str
    content_encoding: str
    body: Any

    def __repr__(self) -> str:
        return f"<{len(self.body)} of {self.content_type}>"


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What the message says of itself, and who has taken it."""

    job_id: uuid.UUID
    #: Of its workflow.
    root_id: uuid.UUID | None
    using: str
    content_version: int
    commits_claim: bool
    redelivered: bool
    #: False for a message that no outbox wrote: another language, ``send_task``, a producer not adopted yet.
    ours: bool
    #: See :func:`worker_name`.
    worker: str
    #: What it says shall follow the job. None: nothing.
    following: Following | None


def read_delivery(task: RunnableTask) -> Delivery:
    """Read the request that is at the top of the task's stack."""
    request = task.request
    info = request.delivery_info or {}
    redelivered, trail = bool(info.get("redelivered")), info.get(TRAIL)
    pointer = request.get(HEADER)
    if not isinstance(pointer, dict):
        content_version, commits_claim = 0, True
    else:
        # What our own messages carry is an int; what a forged one carries must not raise here.
        said, send = pointer.get("content_version"), pointer.get("send")
        content_version = said if isinstance(said, int) else -1
        # Without reruns each start has to be counted, the first one too.
        first = not redelivered and not (isinstance(send, int) and send > 1)
        commits_claim = not (first and task.atomic and task.reruns)
    return Delivery(
        job_id=foreign_id(request.id),
        root_id=as_uuid(request.root_id),
        using=pointer_alias(pointer),
        content_version=content_version,
        commits_claim=commits_claim,
        redelivered=redelivered,
        ours=isinstance(pointer, dict),
        worker=worker_name(task),
        following=None if trail is None else trail.following,
    )


def pointer_alias(pointer: Any) -> str:
    """The database that a message's pointer names; where it names none of ours, the one that a job would go to."""
    using = pointer.get("using") if isinstance(pointer, dict) else None
    return using if isinstance(using, str) and using in connections else databases.write_alias()


def why_no_row(task: RunnableTask, delivery: Delivery) -> str:
    """For a log: what a message without a row may mean."""
    pointer = task.request.get(HEADER)
    named = pointer.get("using") if isinstance(pointer, dict) else None
    if named is not None and named != delivery.using:
        return (
            f"in {delivery.using!r}; its message names the database {named!r}, which this worker's DATABASES lack. The "
            "sweepers of that one send it again"
        )
    return f"in {delivery.using!r} any more (pruned, or its transaction was undone)"


def worker_name(task: RunnableTask) -> str:
    """This thread of this process in the database: a fresh id for each incarnation, because host names and pids come
    back, and because a settlement by another thread is not one's own."""
    if getattr(_here, "pid", None) != os.getpid():
        _here.pid, _here.id = os.getpid(), uuid.uuid4().hex[:8]
    return f"{task.request.hostname or 'unknown'} pid {_here.pid} #{_here.id}"


# --- the row of a message from elsewhere ------------------------------------------------------------------------------


def ensure_row(task: RunnableTask, delivery: Delivery) -> None:
    """Give a message that no outbox wrote its row.

    Raises:
        NotStarted: the database can't be used.
    """
    try:
        write_row(task, delivery.job_id, delivery.using)
    except DatabaseError as error:
        if db_errors.prevents_start(error):
            raise NotStarted(str(error)) from error
        raise


def write_row(task: RunnableTask, job_id: uuid.UUID, using: str, request: Any = None) -> None:
    """Get or create the receipt of a message from elsewhere: however often it is delivered, there is one row."""
    found = Job.objects.using(using).find(job_id)
    if found is not None:
        if found.relay_only:
            lifecycle.take_in(job_id, using)
        return
    request = request or task.request
    embed = {name: request.get(name) for name in ("callbacks", "errbacks", "chain", "chord")}
    info = request.delivery_info or {}
    content = info.get(CONTENT) or dumps((request.args, request.kwargs, embed), "json")
    content_type, content_encoding, payload = content
    headers = {name: request.get(name) for name in _HEADERS if request.get(name) is not None}
    headers.update(task=task.name, id=request.id)
    priority = info.get("priority")
    envelope = {
        "v": ENVELOPE_VERSION,
        "exchange": info.get("exchange") or "",
        "routing_key": info.get("routing_key") or "",
        "headers": headers,
        "properties": {"reply_to": request.reply_to or ""},
    }
    job = Job(
        id=job_id,
        task=task.name,
        queue=info.get("routing_key") or "",
        priority=priority if isinstance(priority, int) and 0 <= priority <= 255 else None,
        due_at=Now(),
        check_at=Now() + datetime.timedelta(seconds=settings.GRACE),
        sends=1,
        payload=payload.encode() if isinstance(payload, str) else bytes(payload),
        content_type=content_type,
        content_encoding=content_encoding,
        envelope=kombu_json.dumps(envelope),
        root_id=as_uuid(request.root_id),
        parent_id=as_uuid(request.parent_id),
    )
    Job.objects.using(using).bulk_create([job], ignore_conflicts=True)


# --- while the database is away ---------------------------------------------------------------------------------------


def waiting_out_outages(using: str, what: str, try_once: Callable[[], _T], since: float | None = None) -> _T:
    """Do what begins with a claim. While the database can't be reached before a task function began, the message is
    neither run nor failed nor spun on: it is held with capped back-off, and given back to the broker after HOLD
    seconds.

    Args:
        since: from when HOLD counts (monotonic), where this is not the first that is done with the message.

    Raises:
        celery.exceptions.Reject: held for too long.
    """
    began = time.monotonic()
    pause, until = 0.25, (began if since is None else since) + settings.HOLD
    connection: Any = connections[using]
    kept = driver_of(connection) is not None
    skip_health_check(connection)
    while True:
        try:
            return try_once()
        except NotStarted as reason:
            met = reason.__cause__ is not None and db_errors.is_conflict(reason.__cause__, using)
            if kept and not met:
                # It may have died since the last job, which says nothing of the database.
                kept = False
                databases.discard(using)
                continue
            # By the clock: one try at a host that is gone takes two minutes.
            if time.monotonic() >= until:
                raise Reject(str(reason), requeue=True) from reason
            if met and time.monotonic() < began + CONFLICTS_PASS:
                # The session is whole, and the other transaction is short: it claims or settles as this one does.
                _sleep(conflict_pause(), reason)
                continue
            logger.warning(
                "%s: the database %r can't be used (%s). Holding the message, next try in %.1f s.",
                what,
                using,
                reason,
                pause,
            )
            if not met:
                databases.discard(using)
            _sleep(pause, reason)
            pause = min(pause * 2, 1.0 if met else 15.0)


def _sleep(seconds: float, reason: NotStarted) -> None:
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        # Meant for a task function, and none has begun. With the message comes another limit.
        raise Reject(f"held past the soft time limit: {reason}", requeue=True) from reason
