"""Other result backends are brought in line with rows that somebody else than a run has changed."""

from __future__ import annotations

import uuid

from celery.app import app_or_default

from reliable_jobs.models import Job
from reliable_jobs.results.answer import answer
from reliable_jobs.results.backend import around, request_of


def bring_in_line(ids: list[uuid.UUID], using: str) -> None:
    """Write what the rows say to the backend that the project has configured, if it has one that others may read. Ends
    at the first that can't be written: a backend that is away is not asked a thousand times.

    A listener of lifecycle/.
    """
    app = app_or_default()
    usual = around(app.backend, app)
    if not usual.is_copied:
        return
    for row in Job.objects.using(using).filter(pk__in=ids).defer("payload"):
        task = app.tasks.get(row.task)
        backend = task.backend if getattr(task, "writes_outbox", False) else usual
        if backend.is_copied and not backend.copy(str(row.pk), answer(row, None, None), request_of(row)):
            return
