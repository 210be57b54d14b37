"""Rows that are born settled: of a message that nothing here can run, and of work that is no job's."""

from __future__ import annotations

import json
from collections.abc import Callable

from django.db import transaction

from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.errors import JobParked
from reliable_jobs.lifecycle.db_errors import class_of, clean
from reliable_jobs.lifecycle.listeners import tell
from reliable_jobs.lifecycle.transition import ERROR_LIMIT, TRACEBACK_LIMIT, record
from reliable_jobs.message.row_to_message import ENVELOPE_VERSION
from reliable_jobs.models import Job
from reliable_jobs.status import EventKind, Reason, Status


def park(
    job: Job,
    using: str,
    *,
    worker: str,
    why: str,
    traceback: str = "",
    failed: Callable[[Job], None] | None = None,
) -> bool:
    """Keep a message from elsewhere that nothing here can run, as a failed row that can be requeued.

    Args:
        failed: writes what follows the failed job, in this transaction.
    """
    job.status = Status.FAILED
    job.reason = Reason.PARKED
    job.error, job.error_class = clean(why, ERROR_LIMIT), class_of(JobParked)
    job.traceback = clean(traceback, TRACEBACK_LIMIT)
    job.worker, job.release = worker, settings.RELEASE
    with transaction.atomic(using=using):
        Job.objects.using(using).bulk_create([job], ignore_conflicts=True)
        changed = Job.objects.using(using).filter(pk=job.pk, finished_at=None).update(finished_at=Now())
        if changed:
            record(job, using, EventKind.PARKED, worker, why, traceback, final=True, error_class=job.error_class)
            if failed is not None:
                failed(job)
            tell([job.pk], using)
    return bool(changed)


def take_receipt(name: str, key: str, using: str) -> tuple[Job, bool]:
    """The receipt of work that is no job's: a row that is born succeeded, with a key that stays taken. Call it in the
    transaction of the work. Returns it, and whether it is new: then the work is to be done, or undone with it."""
    envelope = {"v": ENVELOPE_VERSION, "exchange": "", "routing_key": "", "headers": {"task": name}, "properties": {}}
    return Job.objects.using(using).get_or_create(
        task=name,
        live_key=key,
        defaults={
            "key": key,
            "key_forever": True,
            "status": Status.SUCCEEDED,
            "queue": "",
            "due_at": Now(),
            "started_at": Now(),
            "finished_at": Now(),
            "payload": b"[[], {}, {}]",
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "envelope": json.dumps(envelope),
        },
    )
