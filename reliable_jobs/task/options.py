"""The options of a call, for type checkers and editors. All of Celery's are taken; see docs/settings.md for ours."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping
from typing import Any, TypedDict

#: A call's arguments by position and by name.
Args = tuple[Any, ...] | list[Any] | None
Kwargs = dict[str, Any] | None


class CeleryOptions(TypedDict, total=False):
    """What Celery's ``apply_async`` takes beside those that :meth:`ReliableTask.apply_async` names itself.

    ``queue``, ``exchange``, ``routing_key`` and ``priority`` (0 to 255) route the job; ``time_limit`` and
    ``soft_time_limit`` are seconds of its run. A project whose router or signal reads an option of its own puts it into
    ``headers``.
    """

    queue: Any
    exchange: Any
    routing_key: str | None
    priority: int | None
    serializer: str | None
    compression: str | None
    delivery_mode: str | int | None
    headers: Mapping[str, Any] | None
    ignore_result: bool | None
    add_to_parent: bool
    time_limit: float | None
    soft_time_limit: float | None
    chain: Any
    chord: Any
    group_id: str | None
    group_index: int | None
    parent_id: str | None
    root_id: str | None
    reply_to: str | None
    replaced_task_nesting: int
    stamped_headers: Any
    argsrepr: str
    kwargsrepr: str
    # Without effect: the outbox dispatches.
    connection: Any
    publisher: Any
    retry: bool
    retry_policy: Mapping[str, Any] | None
    mandatory: bool
    immediate: bool


class BulkOptions(CeleryOptions, total=False):
    """What :meth:`ReliableTask.bulk_delay` takes: what all of its jobs may have in common. Times are seconds, or a
    moment."""

    link: Any
    link_error: Any
    countdown: float | None
    eta: datetime.datetime | str | None
    expires: float | datetime.datetime | str | None
    using: str | None


class CallOptions(BulkOptions, total=False):
    """All options of :meth:`ReliableTask.apply_async`."""

    task_id: str | None
    producer: Any
    shadow: str | None
    key: str | int | uuid.UUID | None
    key_forever: bool
    transactional: bool
