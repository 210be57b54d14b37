"""Messages that nobody here can run are kept, not dropped (I7).

Celery rejects an unknown task, acks an undecodable body, and either way the message is gone. Here it becomes visible
first: a job of ours is handed back to waiting until DEPLOY_GRACE is over, a message from elsewhere becomes a failed row
that a person can requeue once the code is there.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from django.db import connections
from django.db.models.functions import Now
from kombu.utils import json as kombu_json

from reliable_jobs import lifecycle
from reliable_jobs.message import ENVELOPE_VERSION, HEADER, as_uuid
from reliable_jobs.models import Job
from reliable_jobs.outbox import pointer_alias, write_alias
from reliable_jobs.receipts import foreign_id
from reliable_jobs.retry import handback_delay

logger = logging.getLogger("reliable_jobs.worker")


def aside(work: Callable[[], None], what: str) -> threading.Thread:
    """Do database work of the parent process in a thread of its own; errors are logged, never raised."""

    def run() -> None:
        try:
            work()
        except Exception:
            logger.exception("Could not record: %s", what)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, name="reliable_jobs-aside", daemon=True)
    thread.start()
    return thread


class ParkingStep(bootsteps.StartStopStep):
    """Puts our answers in front of the consumer's for messages that it would log and drop."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        for name in ("on_unknown_task", "on_unknown_message", "on_invalid_task", "on_decode_error"):
            setattr(consumer, name, _parking_first(consumer, name, getattr(consumer, name)))


def _parking_first(consumer: Any, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def handler(*args: Any) -> Any:
        message = args[0] if name == "on_decode_error" else args[1]
        error = args[-1] if name != "on_unknown_message" else "not a task message"
        try:
            thread_error = _park_in_thread(
                message, f"{name.removeprefix('on_').replace('_', ' ')}: {error!r}", consumer
            )
        except Exception as trouble:
            thread_error = trouble
        if thread_error is not None:
            # Neither acked nor rejected: it comes back when this connection ends, and nothing is lost.
            logger.critical(
                "A message that can't be run could not be parked (%s); it is held unacknowledged.", thread_error
            )
            return None
        return original(*args)

    return handler


def _park_in_thread(message: Any, why: str, consumer: Any) -> Exception | None:
    trouble: list[Exception] = []

    def work() -> None:
        try:
            park_message(message, why, str(consumer.hostname))
        except Exception as error:
            trouble.append(error)

    aside(work, why).join(timeout=30)
    return trouble[0] if trouble else None


def park_message(message: Any, why: str, worker: str) -> None:
    """Keep a broker message that this worker can't run: one of ours is handed back until DEPLOY_GRACE is over, one from
    elsewhere becomes a failed row that a person can requeue.

    Raises:
        django.db.Error: it could not be written.
    """
    headers = message.headers if isinstance(message.headers, dict) else {}
    pointer = headers.get(HEADER)
    if isinstance(pointer, dict) and as_uuid(headers.get("id")) is not None:
        alias = pointer_alias(pointer)
        job_id = foreign_id(headers["id"])
        if lifecycle.find(job_id, alias) is not None:
            lifecycle.hand_back(job_id, alias, worker=worker, why=why, delay=handback_delay(2))
            return
    info = message.delivery_info or {}
    body = message.body
    job = Job(
        id=foreign_id(headers["id"]) if headers.get("id") else uuid.uuid4(),
        task=str(headers.get("task") or "")[:255],
        queue=str(info.get("routing_key") or "")[:255],
        due_at=Now(),
        body=body.encode() if isinstance(body, str) else bytes(body or b""),
        content_type=str(message.content_type or "")[:127],
        content_encoding=str(message.content_encoding or "")[:63],
        envelope=kombu_json.dumps(
            {
                "v": ENVELOPE_VERSION,
                "exchange": info.get("exchange") or "",
                "routing_key": info.get("routing_key") or "",
                "headers": {str(name): value for name, value in headers.items() if name != HEADER},
                "properties": {},
            },
            default=repr,
        ),
    )
    lifecycle.park(job, write_alias(), worker=worker, why=why)
