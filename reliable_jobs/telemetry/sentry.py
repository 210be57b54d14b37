"""Sentry: endings that no task function reported and that its own Celery integration can't see.

That integration captures what leaves a task's call. So a failure, an expiry and the end of a job that crashed too often
reach Sentry without us: a worker meets them. What happens in no task is captured here, once, by the process that
committed it: a run that died with its whole worker, and a job that was parked where no worker has its code.
"""

from __future__ import annotations

import importlib.util
import sys
import uuid
from typing import Any

from celery import current_task

from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.signals import job_parked, job_rescued

UID = "reliable_jobs.telemetry.sentry"


def connect() -> None:
    """Listen, where sentry-sdk is installed. Neither signal is on a job's usual way."""
    if importlib.util.find_spec("sentry_sdk") is not None:
        job_rescued.connect(_rescued, dispatch_uid=UID)
        job_parked.connect(_parked, dispatch_uid=UID)


def _rescued(*, seen: bool, **said: Any) -> None:
    # Its worker has logged the others as errors, which Sentry collects.
    if not seen:
        _capture("A run died without a word", **said)


def _parked(*, final: bool, **said: Any) -> None:
    if final:
        _capture("No worker can run the job", **said)


def _capture(what: str, *, job_id: uuid.UUID, task: str, queue: str, using: str, detail: str, **more: Any) -> None:
    sentry = sys.modules.get("sentry_sdk")
    if sentry is None:
        return  # nor does it send anything before its init()
    if current_task and current_task.request.id and foreign_id(current_task.request.id) == job_id:
        return  # its call raises, and Sentry's own integration sees that
    with sentry.new_scope() as scope:
        scope.fingerprint = ["reliable_jobs", what, task]
        scope.set_tags({"job": str(job_id), "task": task, "queue": queue, "database": using})
        scope.set_context("job", {"detail": detail})
        sentry.capture_message(f"{what}: {task}", level="error")
