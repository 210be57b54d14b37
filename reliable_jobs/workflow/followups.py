"""What follows a job, written in the transaction of its settlement.

Celery's tracer dispatches callbacks, chain and errbacks after the task function and before the ack, outside any
transaction: a worker that dies between them loses what is left, and a second delivery starts the first ones again. They
are taken off the request before the tracer sees it (run/tracing.py), and applied here in a unit of work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery import group, maybe_signature
from celery.exceptions import SoftTimeLimitExceeded
from django.db import Error as DatabaseError
from django.db import transaction

from reliable_jobs import lifecycle
from reliable_jobs.compat.kombu import content_types
from reliable_jobs.lifecycle import db_errors
from reliable_jobs.logs import job_logger
from reliable_jobs.message import debts, exception_text
from reliable_jobs.message.decode import content
from reliable_jobs.message.result_text import as_celery_stores
from reliable_jobs.message.row_to_message import as_uuid, outgoing
from reliable_jobs.models import Job
from reliable_jobs.status import EventKind
from reliable_jobs.translatable import EARLIER_FAILED
from reliable_jobs.workflow import cancelling, errbacks
from reliable_jobs.workflow.following import Ended, Following

logger = job_logger(__name__)


def after_success(ended: Ended, following: Following, value: Any) -> None:
    """Write the callbacks and the next step of a job's chain, in the open transaction, as Celery's tracer applies them.
    Where the workflow was cancelled meanwhile, the later steps are written as cancelled, and nothing else.

    Raises:
        Exception: of any kind; one of them can't be applied. The job has not succeeded then.
    """
    why = cancelling.stops(ended)
    if why is not None:
        cancelling.cancel_steps(ended, following, why)
        return
    args = (as_celery_stores(value),)
    inherited = ended.priority if ended.app.conf.task_inherit_parent_priority else None
    options = {"parent_id": ended.task_id, "root_id": ended.root, "priority": inherited}
    with ended.unit():
        callbacks = [maybe_signature(signature, app=ended.app) for signature in following.callbacks]
        if len(callbacks) > 1:
            singles = [callback for callback in callbacks if not isinstance(callback, group)]
            callbacks = [callback for callback in callbacks if isinstance(callback, group)]
            if singles:
                callbacks.append(group(singles, app=ended.app))
        for callback in callbacks:
            callback.apply_async(args, **options)
        if following.chain:
            step = maybe_signature(following.chain[-1], app=ended.app)
            step.apply_async(args, chain=list(following.chain[:-1]), **options)


def after_failure(ended: Ended, following: Following, error: BaseException, traceback: str) -> None:
    """Write the errbacks of a job that has failed for good, and the later steps of its chain as failed, in the open
    transaction. What can't be written is left out and stands in the job's history: its end must be recorded.

    Args:
        error: as it may be shown.
    """
    why = cancelling.stops(ended)
    if why is not None:
        _apart(ended, "the later steps can't be cancelled", lambda: cancelling.cancel_steps(ended, following, why))
        return
    for errback in following.errbacks:
        call = functools.partial(errbacks.apply, ended.app, ended.using, errback, ended, error, traceback)
        _apart(ended, "an errback can't be applied", call)
    if following.chain:
        later = functools.partial(_fail_steps, ended, following, error)
        _apart(ended, "the later steps of the chain can't be written as failed", later)


def _apart(ended: Ended, what: str, write: Callable[[], None]) -> None:
    """In a savepoint of its own, so that an error is undone alone."""
    try:
        with transaction.atomic(using=ended.using), ended.unit():
            write()
    except SoftTimeLimitExceeded:
        raise
    except Exception as trouble:  # a signature of another program may hold anything
        if isinstance(trouble, DatabaseError) and db_errors.is_transient(trouble, ended.using):
            raise
        logger.exception("Job %s has failed, and %s.", ended.job_id, what)
        text = f"{what}: {db_errors.describe(trouble)}"
        job = lifecycle.Subject(ended.job_id, queue=ended.queue)
        lifecycle.record(job, ended.using, EventKind.FAILURE, "errback", text, db_errors.trace(trouble))


def _fail_steps(ended: Ended, following: Following, error: BaseException) -> None:
    lifecycle.end_steps(
        [step for signature in reversed(following.chain) for step in debts.jobs_of(signature)],
        ended.using,
        parent_id=ended.job_id,
        root_id=as_uuid(ended.root),
        error=EARLIER_FAILED % {"id": ended.job_id, "error": db_errors.describe(error)},
        exception=exception_text.encode(error),
        error_class=db_errors.class_of(error),
        is_reliable=lambda name: getattr(ended.app.tasks.get(name), "writes_outbox", False),
    )


def row_failed(app: Any, using: str, job: Job, error: BaseException) -> None:
    """:func:`after_failure` of a job that no run has ended: what follows is read off its row. Never raises but for the
    database."""
    try:
        headers = outgoing(job, using).headers
        follow = content(job, headers, trusted=content_types(app.conf.accept_content))[2]
        following = Following.of(follow)
    except (AttributeError, KeyError, TypeError, ValueError) as trouble:
        logger.warning("Job %s: what was to follow can't be read: %s", job.pk, trouble)
        return
    if following is not None:
        ended = Ended(app, using, job.pk, str(headers["id"]), str(job.root_id or ""), job.queue, job.priority)
        after_failure(ended, following, error, "")
