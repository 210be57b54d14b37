"""Messages that nobody here can run are kept, not dropped (I7).

Celery rejects an unknown task, acks an undecodable payload, and either way the message is gone. A message that is
shaped otherwise than it expects (a body of two parts, a header of another type) even ends the worker, and then the next
one, to which it is redelivered. Here it becomes visible first: a job of ours is handed back to waiting until
DEPLOY_GRACE is over, a message from elsewhere becomes a failed row that a person can requeue once the code is there.
A message of ours whose row is gone is dropped: without a row there is no job (I1).
"""

from __future__ import annotations

import functools
import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.app import app_or_default
from celery.worker import state as worker_state
from kombu.utils import json as kombu_json

from reliable_jobs import lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.compat.celery_backend import results_untouched
from reliable_jobs.compat.celery_consumer import around_each_message, before_rejecting, reject_invalid
from reliable_jobs.compat.celery_pool import reserves_places
from reliable_jobs.compat.django import close_connections
from reliable_jobs.databases import write_alias
from reliable_jobs.errors import JobParked
from reliable_jobs.lifecycle import db_errors
from reliable_jobs.lifecycle.delays import handback_delay
from reliable_jobs.logs import fields
from reliable_jobs.message.row_to_message import ENVELOPE_VERSION, HEADER, as_uuid, foreign_id
from reliable_jobs.models import Job
from reliable_jobs.run.arrival import pointer_alias
from reliable_jobs.sqlite_forks import without_forks
from reliable_jobs.workflow import followups

logger = logging.getLogger(__name__)

#: How long the consumer waits for a message to be parked, in seconds.
PATIENCE = 30.0


def aside(work: Callable[[], None], what: str) -> threading.Thread | None:
    """Do database work of the parent process in a thread of its own; errors are logged, never raised. None where no
    thread can be started."""

    def run() -> None:
        try:
            with without_forks():
                work()
        except Exception:
            logger.exception("Could not record: %s", what)
        finally:
            close_connections()

    thread = threading.Thread(target=run, name="reliable_jobs-aside", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no room for another thread
        logger.error("Could not record: %s (%s)", what, error)
        return None
    return thread


class ParkingStep(bootsteps.StartStopStep):
    """Puts our answers in front of the consumer's for messages that it would log and drop."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        before_rejecting(consumer, functools.partial(_park_first, consumer))
        around_each_message(consumer, functools.partial(_outlive, consumer))


def _outlive(consumer: Any, handle: Callable[[Any], Any], message: Any) -> Any:
    """Handle a message; park what Celery stumbles over in reading it."""
    try:
        return handle(message)
    except (*consumer.connection_errors, *consumer.channel_errors):
        raise
    except Exception as error:  # Celery's, a strategy's, a receiver's or our own
        request = _reserved(message)
        if message.acknowledged or (request is not None and reserves_places(consumer.pool)):
            raise  # no longer a matter of this message alone
        if request is not None:
            worker_state.task_ready(request)
        return reject_invalid(consumer, message, error)


def _reserved(message: Any) -> Any:
    return next((request for request in list(worker_state.reserved_requests) if request.message is message), None)


def _park_first(consumer: Any, wrong: str, message: Any, error: Any, answer: Callable[[], Any]) -> Any:
    if not parked(message, f"{wrong}: {error!r}", consumer.hostname, error):
        # Neither acked nor rejected: it comes back when this connection ends, and nothing is lost.
        logger.critical("A message that can't be run could not be parked; it is held unacknowledged.")
        return None
    try:
        with results_untouched():  # the row's listener has told what is known
            return answer()
    except consumer.connection_errors:
        raise
    except Exception as trouble:
        # It reads the message once more, and may tell the result backend of an id that no database takes.
        logger.error("Celery could not answer a message that has been parked: %r", trouble)
        if not message.acknowledged:
            message.reject_log_error(logger, consumer.connection_errors)
        return None


def parked(message: Any, why: str, worker: Any, error: Any = None) -> bool:
    """Park a message; says whether that was done within PATIENCE seconds. Never raises.

    Args:
        error: its traceback goes into the history.
    """
    done: list[bool] = []

    def work() -> None:
        trace = db_errors.trace(error) if isinstance(error, Exception) else ""
        park_message(message, why, str(worker), trace)
        done.append(True)

    thread = aside(work, why)
    if thread is not None:
        thread.join(PATIENCE)
        if thread.is_alive():
            logger.error("To park a message takes longer than %g s: %s", PATIENCE, why)
    return bool(done)


def park_message(message: Any, why: str, worker: str, trace: str = "") -> None:
    """Keep a broker message that this worker can't run: one of ours is handed back until DEPLOY_GRACE is over, one from
    elsewhere becomes a failed row that a person can requeue. One of ours whose row is gone is dropped.

    Raises:
        django.db.Error: it could not be written.
    """
    headers = message.headers if isinstance(message.headers, dict) else {}
    pointer = headers.get(HEADER)
    if isinstance(pointer, dict) and as_uuid(headers.get("id")) is not None:
        alias = pointer_alias(pointer)
        job_id = foreign_id(headers["id"])
        delay = handback_delay(2.0)  # about 8 s each time: how long it has been so already is not asked here
        failed = functools.partial(_failed, alias, why)
        version = pointer.get("content_version")
        status = lifecycle.hand_back(
            job_id,
            alias,
            worker=worker,
            why=why,
            delay=delay,
            content_version=version if isinstance(version, int) else None,
            traceback=trace,
            failed=failed,
        )
        if status is None:
            # As in run/delivery.py: a row made of it would bring back a job whose transaction was rolled back (I1).
            logger.warning(
                "Job %s has no row (pruned, or its transaction was rolled back); message dropped (%s).",
                job_id,
                why,
                extra=fields(job_id, str(headers.get("task") or "")),
            )
        return
    info = message.delivery_info or {}
    body = message.body
    job = Job(
        id=foreign_id(headers["id"]) if headers.get("id") else uuid.uuid4(),
        task=_column(headers.get("task"), 255),
        queue=_column(info.get("routing_key"), 255),
        due_at=Now(),
        payload=body.encode() if isinstance(body, str) else bytes(body or b""),
        content_type=_column(message.content_type, 127),
        content_encoding=_column(message.content_encoding, 63),
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
    alias = write_alias()
    failed = functools.partial(_failed, alias, why)
    lifecycle.park(job, alias, worker=worker, why=why, traceback=trace, failed=failed)


def _failed(using: str, why: str, job: Job) -> None:
    """Errbacks and the later steps of a chain, of a job that no run will end."""
    followups.row_failed(app_or_default(), using, job, JobParked(why))


def _column(value: Any, limit: int) -> str:
    text = str(value or "")
    return db_errors.clean(text, len(text))[:limit]
