"""Many small jobs of one task in one message: packed where messages are published, run by run/bundle.py.

With ``bundle = 100`` on the task they share the transaction, too. Other atomic tasks share the message alone, where
many of their jobs are published at once: see run/bundle_apart.py; DELIVERY_BATCH says how many at most.

Only first sends are packed: a job that is sent again, for whatever reason, travels alone and is run with care. The
message holds ids and content versions; the worker reads the rest from the rows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from celery import Celery, Task

from reliable_jobs.conf import settings
from reliable_jobs.dispatch import run_times
from reliable_jobs.message.row_to_message import HEADER, USUAL_HEADERS, Outgoing
from reliable_jobs.task_types import REQUEST

TASK = "reliable_jobs.bundle"
#: Jobs in one bundle: with more the gain is small, and the rows stay locked for long.
LIMIT = 100
#: Jobs of a task that are published together before they share messages, and messages that they have at least: other
#: workers are to get some.
ENOUGH, MESSAGES = 20, 4
#: Seconds below which a time limit has a job travel alone: see run/bundle_apart.py.
SHORTEST_LIMIT = 10.0


def size(task: Any) -> int:
    """How many jobs of a task may travel together; 1 where they may not."""
    wanted = getattr(task, "bundle", 1)
    if not isinstance(wanted, int) or wanted < 2:
        return 1
    # A rate limit counts messages; non-atomic functions have no transaction to share, nor do those whose worker
    # closes its connections around each of them.
    fit = task.atomic and not task.rate_limit and settings.WORKER_CONN_MAX_AGE
    return min(wanted, LIMIT) if fit else 1


def shares_messages(task: Any) -> bool:
    """Whether jobs of a task may share a message and nothing else."""
    # A request or a strategy of the project's may expect to see each job.
    if not getattr(task, "writes_outbox", False) or task.Request != REQUEST or task.Strategy != Task.Strategy:
        return False
    # A rate limit counts messages. Without reruns each start has to be counted; other functions need a lease.
    counts = bool(task.rate_limit) or not (task.atomic and task.reruns and task.acks_late)
    conf = task.app.conf  # of a worker whose command line says otherwise, nothing is known here
    limits = (task.time_limit or conf.task_time_limit, task.soft_time_limit or conf.task_soft_time_limit)
    return not counts and not has_short_limit(limits)


def has_short_limit(limits: Sequence[float | None]) -> bool:
    """Whether one of these time limits is too short for a message that others have used for a second."""
    return any(limit and limit < SHORTEST_LIMIT for limit in limits)


def pack(app: Celery, messages: Sequence[Outgoing]) -> tuple[Sequence[Outgoing], dict[uuid.UUID, list[uuid.UUID]]]:
    """The messages, with those that may travel together put into bundles; and which jobs each bundle holds."""
    sizes: dict[str, int] = {}
    shares: dict[str, bool] = {}
    batch = min(settings.DELIVERY_BATCH, LIMIT)
    tasks = app.tasks
    groups: dict[tuple[Any, ...], list[Outgoing]] = {}
    rest: list[Outgoing] = []
    for message in messages:
        name = message.headers.get("task", "")
        if name not in sizes:
            task = tasks.get(name)
            sizes[name] = size(task)
            shares[name] = sizes[name] == 1 and batch > 1 and shares_messages(task)
        if (sizes[name] > 1 and _is_plain(message, tasks[name])) or (shares[name] and _is_first(message, tasks[name])):
            pointer, priority = message.headers[HEADER], message.properties.get("priority")
            route = (name, pointer["using"], message.exchange, message.routing_key, message.queue, priority)
            groups.setdefault(route, []).append(message)
        else:
            rest.append(message)
    if not groups:
        return messages, {}
    bundles: dict[uuid.UUID, list[uuid.UUID]] = {}
    for (name, using, exchange, *_), group in groups.items():
        if not _routes_by_key(app, exchange):
            rest += group
            continue
        together = sizes[name]
        if shares[name] and len(group) >= ENOUGH:
            together = min(batch, len(group) // MESSAGES, run_times.fitting(name, using))
        for start in range(0, len(group), together):
            jobs = group[start : start + together]
            if len(jobs) == 1:
                rest += jobs
                continue
            message = _bundle(tasks[name], using, jobs)
            bundles[message.id] = [job.id for job in jobs]
            rest.append(message)
    return rest, bundles


def _is_plain(message: Outgoing, task: Any) -> bool:
    return _has_limits_of(task, message) and _is_first_send(message) and message.headers.get("group") is None


def _is_first(message: Outgoing, task: Any) -> bool:
    """Whether a message is of a job that was never sent, run, or requeued, and that its worker need not see itself."""
    headers = message.headers
    if not (_has_limits_of(task, message) and _is_first_send(message)):
        return False
    odd = headers[HEADER]["requeues"] or any(headers.get(name) for name in ("retries", "stamps", "compression"))
    return not odd


def _has_limits_of(task: Any, message: Outgoing) -> bool:
    limits = list(message.headers.get("timelimit") or (None, None))
    return limits in ([None, None], [task.time_limit, task.soft_time_limit])


def _routes_by_key(app: Celery, exchange: str) -> bool:
    """Whether a message of several jobs goes where each of them would. An exchange of another type, or of one that this
    app does not know, may look at the headers, and each job has its own."""
    if not exchange:
        return True
    queues = list(app.amqp.queues.values())  # at once: another thread may add one
    kinds = {queue.exchange.type for queue in queues if queue.exchange.name == exchange}
    return kinds in ({"direct"}, {"topic"}, {"fanout"})


def _is_first_send(message: Outgoing) -> bool:
    # Without a pointer: a row that was written when its task was no reliable one.
    return HEADER in message.headers and message.headers[HEADER]["send"] == 1


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
