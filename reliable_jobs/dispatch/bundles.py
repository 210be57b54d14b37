"""Many small jobs of one task in one message: packed where messages are published, run by run/bundle.py.

Opt-in, by ``bundle = 100`` on the task. Only first sends are packed: a job that is sent again, for whatever reason,
travels alone and is run with care. The message holds ids and content versions; the worker reads the rest from the rows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from celery import Celery

from reliable_jobs.conf import settings
from reliable_jobs.message.row_to_message import HEADER, USUAL_HEADERS, Outgoing

TASK = "reliable_jobs.bundle"
#: Jobs in one bundle: with more the gain is small, and the rows stay locked for long.
LIMIT = 100


def size(task: Any) -> int:
    """How many jobs of a task may travel together; 1 where they may not."""
    wanted = getattr(task, "bundle", 1)
    if not isinstance(wanted, int) or wanted < 2:
        return 1
    # A rate limit counts messages; non-atomic functions have no transaction to share, nor do those whose worker
    # closes its connections around each of them.
    fit = task.atomic and not task.rate_limit and settings.WORKER_CONN_MAX_AGE
    return min(wanted, LIMIT) if fit else 1


def pack(app: Celery, messages: Sequence[Outgoing]) -> tuple[Sequence[Outgoing], dict[uuid.UUID, list[uuid.UUID]]]:
    """The messages, with those that may travel together put into bundles; and which jobs each bundle holds."""
    sizes: dict[str, int] = {}
    tasks = app.tasks
    groups: dict[tuple[Any, ...], list[Outgoing]] = {}
    rest: list[Outgoing] = []
    for message in messages:
        name = message.headers.get("task", "")
        if name not in sizes:
            sizes[name] = size(tasks.get(name))
        if sizes[name] > 1 and _is_plain(message, tasks[name]):
            pointer, priority = message.headers[HEADER], message.properties.get("priority")
            route = (name, pointer["using"], message.exchange, message.routing_key, message.queue, priority)
            groups.setdefault(route, []).append(message)
        else:
            rest.append(message)
    if not groups:
        return messages, {}
    bundles: dict[uuid.UUID, list[uuid.UUID]] = {}
    for (name, using, *_), group in groups.items():
        for start in range(0, len(group), sizes[name]):
            jobs = group[start : start + sizes[name]]
            if len(jobs) == 1:
                rest += jobs
                continue
            message = _bundle(tasks[name], using, jobs)
            bundles[message.id] = [job.id for job in jobs]
            rest.append(message)
    return rest, bundles


def _is_plain(message: Outgoing, task: Any) -> bool:
    headers = message.headers
    limits = list(headers.get("timelimit") or (None, None))
    the_tasks = limits in ([None, None], [task.time_limit, task.soft_time_limit])
    # Without a pointer: a row that was written when its task was no reliable one.
    first = HEADER in headers and headers[HEADER]["send"] == 1
    return bool(the_tasks and first and headers.get("group") is None)


def _bundle(task: Any, using: str, jobs: Sequence[Outgoing]) -> Outgoing:
    first, bundle_id = jobs[0], uuid.uuid4()
    pointers = [[job.id.hex, job.headers[HEADER]["content_version"]] for job in jobs]
    headers = {
        **USUAL_HEADERS,
        "id": str(bundle_id),
        "root_id": str(bundle_id),
        "task": TASK,
        "argsrepr": f"({len(jobs)} jobs of {task.name})",
        "ignore_result": True,
        "timelimit": [task.time_limit, task.soft_time_limit],
    }
    properties = {"message_id": str(bundle_id), "correlation_id": str(bundle_id), "delivery_mode": 2}
    if (priority := first.properties.get("priority")) is not None:
        properties["priority"] = priority
    return Outgoing(
        id=bundle_id,
        queue=first.queue,
        exchange=first.exchange,
        routing_key=first.routing_key,
        body=json.dumps([[task.name, using, pointers], {}, {}]).encode(),
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers,
        properties=properties,
    )
