"""Plain tasks that a group waits for: their workers say when they have ended. Where one dies before it has, the result
backend is asked, if there is one."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from celery import Celery, states
from celery.exceptions import SoftTimeLimitExceeded
from django.db import Error as DatabaseError
from django.db import connections

from reliable_jobs import databases
from reliable_jobs.compat.celery_backend import can_be_read, wrapped_by
from reliable_jobs.compat.celery_results import stored_result
from reliable_jobs.lifecycle import relayed
from reliable_jobs.message import result_text
from reliable_jobs.message.decode import headers_of
from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.status import Status
from reliable_jobs.workflow import chords

logger = logging.getLogger(__name__)

#: Plain parts that one sweep asks for.
LIMIT = 100
#: Seconds between the tries to write what a worker says: nobody says it a second time.
PAUSES = (0.1, 0.5, 2.0)


def ended(app: Celery, task_id: str, state: str, result: Any) -> None:
    """A plain task has ended, as its worker says. Does nothing where no group of ours waits for it.

    Args:
        state, result: as Celery's tracer has them.

    Raises:
        django.db.Error: it could not be written.
    """
    for pause in (*PAUSES, None):
        try:
            for alias in databases.in_order():
                if _report(app, foreign_id(task_id), alias, state, result):
                    return
            return
        except DatabaseError:
            if pause is None:
                raise
            for alias in databases.in_order():
                connections[alias].close()
            time.sleep(pause)


def sweep(app: Celery, using: str, limit: int = LIMIT) -> int:
    """Ask the result backend for plain parts whose workers have said nothing yet, each ever less often. Returns how
    many have ended."""
    backend = wrapped_by(app.backend)
    if not can_be_read(backend):
        return 0
    found = 0
    for job in relayed.take_unreported(using, limit):
        try:
            meta = stored_result(backend, str(headers_of(job).get("id") or job.pk))
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # a backend may raise anything
            logger.warning("The result backend could not be asked for plain parts of chords: %s", error)
            break
        if meta.get("status") in states.READY_STATES:
            found += _report(app, job.pk, using, meta["status"], meta.get("result"))
    return found


def _report(app: Celery, job_id: uuid.UUID, using: str, state: str, result: Any) -> bool:
    """Write the end of a plain part; says whether there was one to write."""
    succeeded = state == states.SUCCESS
    text = result_text.encode(result, app.conf.result_serializer) if succeeded and result is not None else None
    owes = relayed.report(
        job_id,
        using,
        status=Status.SUCCEEDED if succeeded else Status.FAILED,
        result=text,
        error="" if succeeded else repr(result),
    )
    if owes is not None:
        chords.part_ended(app, owes, using)
    return owes is not None
