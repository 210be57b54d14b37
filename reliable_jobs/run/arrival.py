"""What a message says of itself when it reaches the worker's child, and the row that it gets if it has none."""

from __future__ import annotations

import dataclasses
import uuid
from typing import TYPE_CHECKING, Any

from django.db import Error as DatabaseError

from reliable_jobs.databases import pointer_alias
from reliable_jobs.lifecycle import db_errors
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.run import foreign_messages
from reliable_jobs.run.execution import NotStarted

if TYPE_CHECKING:
    from reliable_jobs.protocols import RunnableTask


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What the message says of itself."""

    job_id: uuid.UUID
    using: str
    rev: int
    commits_claim: bool
    redelivered: bool
    #: False for a message that no outbox wrote: another language, ``send_task``, a producer not adopted yet.
    ours: bool


def read_delivery(task: RunnableTask) -> Delivery:
    """Read the request that is at the top of the task's stack."""
    request = task.request
    redelivered = bool((request.delivery_info or {}).get("redelivered"))
    pointer = request.get(HEADER)
    if not isinstance(pointer, dict):
        return Delivery(
            foreign_messages.foreign_id(request.id),
            pointer_alias(None),
            0,
            commits_claim=True,
            redelivered=redelivered,
            ours=False,
        )
    return Delivery(
        job_id=foreign_messages.foreign_id(request.id),
        using=pointer_alias(pointer),
        rev=_number(pointer.get("rev")),
        commits_claim=not task.atomic or redelivered or _number(pointer.get("send")) > 1,
        redelivered=redelivered,
        ours=True,
    )


def _number(value: Any) -> int:
    """What our own messages carry is an int; what a forged one carries must not raise here."""
    return value if isinstance(value, int) else -1


def ensure_receipt(task: RunnableTask, delivery: Delivery) -> None:
    """Give a message that no outbox wrote its row.

    Raises:
        NotStarted: the database can't be used.
    """
    if delivery.ours:
        return
    try:
        foreign_messages.ensure(task, delivery.job_id, delivery.using)
    except DatabaseError as error:
        if db_errors.prevents_start(error):
            raise NotStarted(str(error)) from error
        raise
