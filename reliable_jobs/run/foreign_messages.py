"""Rows for messages that no outbox wrote: another language, ``send_task``, a producer that is not adopted yet."""

from __future__ import annotations

import datetime
import uuid
from typing import TYPE_CHECKING, Any

from kombu.serialization import dumps
from kombu.utils import json as kombu_json

from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import find
from reliable_jobs.message.row_to_message import ENVELOPE_VERSION, as_uuid
from reliable_jobs.models import Job

if TYPE_CHECKING:
    from reliable_jobs.protocols import RunnableTask

#: Where the request's delivery_info carries the message's content type, encoding and bytes.
CONTENT = "reliable_content"
_FOREIGN = uuid.UUID("6f3c7e52-9a0e-5b57-8c55-1f4ad4a3c0de")
_HEADERS = (
    *("lang", "task", "id", "shadow", "group", "group_index", "retries", "timelimit", "root_id", "parent_id"),
    *("argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps"),
)


def foreign_id(task_id: Any) -> uuid.UUID:
    """The row's id for any Celery task id: itself where it is a UUID, one derived from it otherwise."""
    return as_uuid(task_id) or uuid.uuid5(_FOREIGN, str(task_id))


def ensure(task: RunnableTask, job_id: uuid.UUID, using: str, request: Any = None) -> None:
    """Get or create the receipt of a message from elsewhere: however often it is delivered, there is one row."""
    if find(job_id, using) is not None:
        return
    request = request or task.request
    embed = {name: request.get(name) for name in ("callbacks", "errbacks", "chain", "chord")}
    info = request.delivery_info or {}
    content = info.get(CONTENT) or dumps((request.args, request.kwargs, embed), "json")
    content_type, content_encoding, body = content
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
        body=body.encode() if isinstance(body, str) else bytes(body),
        content_type=content_type,
        content_encoding=content_encoding,
        envelope=kombu_json.dumps(envelope),
        root_id=as_uuid(request.root_id),
        parent_id=as_uuid(request.parent_id),
    )
    Job.objects.using(using).bulk_create([job], ignore_conflicts=True)
