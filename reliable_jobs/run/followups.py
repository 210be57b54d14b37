"""What a successful job starts next, written in the same transaction as its settlement.

Celery's tracer dispatches callbacks and the chain after the function and before the ack, outside any transaction. For
targets that are reliable tasks they are taken off the request here (setting them to None stops the tracer) and become
rows; the rest is left to the tracer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import Signature, maybe_signature

from reliable_jobs.compat.celery_run import leave_to_tracer
from reliable_jobs.message.result_text import as_celery_stores

if TYPE_CHECKING:
    from reliable_jobs.protocols import RunnableTask


def take(task: RunnableTask, value: Any) -> Callable[[], None] | None:
    """Take the reliable callbacks and the chain off the request; returns what writes them, or None where none of them
    is reliable.

    Args:
        value: what the task function returned.
    """
    request, app, value = task.request, task.app, as_celery_stores(value)
    callbacks = [maybe_signature(signature, app=app) for signature in request.callbacks or ()]
    ours = [signature for signature in callbacks if is_reliable(app, signature)]
    following, rest = None, None
    if request.chain:
        head = maybe_signature(request.chain[-1], app=app)
        if is_reliable(app, head):
            following, rest = head, request.chain[:-1]
    theirs = [signature for signature in callbacks if signature not in ours]
    leave_to_tracer(request, callbacks=theirs, chain=None if following is not None else request.chain)
    lineage = {"parent_id": request.id, "root_id": request.root_id or request.id}
    inherited = (request.delivery_info or {}).get("priority") if app.conf.task_inherit_parent_priority else None
    if inherited is not None:
        lineage["priority"] = inherited  # as Celery's tracer passes it on

    def write() -> None:
        for signature in ours:
            signature.apply_async((value,), **lineage)
        if following is not None:
            following.apply_async((value,), chain=rest, **lineage)

    return write if ours or following is not None else None


def is_reliable(app: Any, signature: Signature) -> bool:
    """Whether a signature names one reliable task; groups, chords and chains are the tracer's business."""
    target = app.tasks.get(signature.get("task"))
    return signature.get("subtask_type") is None and getattr(target, "writes_outbox", False)
