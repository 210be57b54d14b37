"""Errbacks (``link_error``) as jobs.

Celery has two kinds. The old one takes the failed task's id: a job as any other. The new one takes request, exception
and traceback, and Celery calls it in the process in which the task failed. Here it is a job too, with the mark
``errback_of``: its message carries the exception as result backends store it, and its worker makes the request anew
from the failed row. So a sweeper that ends a job runs no code of the project's. A new errback that is no reliable task
is called by a job of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import maybe_signature
from celery.app.task import Context

from reliable_jobs.compat.celery_results import is_new_errback
from reliable_jobs.compat.kombu import content_types
from reliable_jobs.message import exception_text
from reliable_jobs.message.decode import content
from reliable_jobs.message.row_to_message import outgoing
from reliable_jobs.models import Job
from reliable_jobs.workflow.unit import unit_of_work

if TYPE_CHECKING:
    from reliable_jobs.workflow.following import Ended

#: The task that calls a new errback which is no reliable task.
CARRIER = "reliable_jobs.call_errback"


def apply(app: Any, using: str, signature: Any, ended: Ended, error: BaseException, traceback: str) -> None:
    """Write the job of one errback, in the open transaction and unit of work.

    Raises:
        Exception: of any kind; it can't be applied.
    """
    errback = maybe_signature(signature, app=app)
    options = {"parent_id": ended.task_id, "root_id": ended.root}
    if errback.immutable or not is_new_errback(app, errback):
        errback.apply_async((ended.task_id,), **options)
        return
    told = (None, exception_text.parts(error), traceback)
    with unit_of_work(app, using, parent_id=ended.task_id, root_id=ended.root, errback_of=ended.job_id):
        if getattr(errback.type, "writes_outbox", False):
            errback.apply_async(told, **options)
        else:
            # To the queue of the failed job: its workers know the errback.
            carrier = app.tasks[CARRIER]
            carrier.apply_async((*told, dict(errback)), queue=ended.queue or None, **options)


def arguments(app: Any, using: str, job: Job, args: Any) -> list[Any]:
    """The arguments of a job that is told of a failure: request, exception and traceback, and its own.

    Args:
        job: the errback's.
        args: of its message.
    """
    _, stored, traceback, *own = args
    assert job.errback_of is not None
    failed = Job.objects.using(using).filter(pk=job.errback_of).first()
    request = Context(id=str(job.errback_of), args=(), kwargs={}) if failed is None else _request(app, using, failed)
    return [request, exception_text.of_parts(stored), traceback, *own]


def _request(app: Any, using: str, failed: Job) -> Context:
    """The request of a failed job, as far as its row knows it."""
    message = outgoing(failed, using)
    try:
        args, kwargs, follow = content(failed, message.headers, trusted=content_types(app.conf.accept_content))
    except ValueError:  # pickle, or a type that is not accepted here
        args, kwargs, follow = [], {}, {}
    info = {
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "priority": failed.priority,
        "redelivered": None,
    }
    return Context(
        {
            **message.headers,
            **follow,
            "args": args,
            "kwargs": kwargs,
            "retries": failed.failures,
            "hostname": failed.worker.split(" pid ")[0],
            "delivery_info": info,
            "called_directly": False,
        }
    )
