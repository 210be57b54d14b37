"""Rows that are born settled: of a message that nothing here can run, of steps that will not come, and of work that is
no job's."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.db import transaction
from django.db.models import Q
from kombu.serialization import dumps
from kombu.utils import json as kombu_json

from reliable_jobs.clock import Now
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.lifecycle.listeners import tell
from reliable_jobs.lifecycle.transition import ERROR_LIMIT, TRACEBACK_LIMIT, record, transition
from reliable_jobs.message.row_to_message import ENVELOPE_VERSION, foreign_id
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
    job.error = clean(why, ERROR_LIMIT)
    job.traceback = clean(traceback, TRACEBACK_LIMIT)
    job.worker = worker
    with transaction.atomic(using=using):
        Job.objects.using(using).bulk_create([job], ignore_conflicts=True)
        changed = Job.objects.using(using).filter(pk=job.pk, finished_at=None).update(finished_at=Now())
        if changed:
            record(job.pk, using, EventKind.PARKED, worker, why, traceback)
            if failed is not None:
                failed(job)
            tell([job.pk], using)
    return bool(changed)


def fail_steps(
    steps: Iterable[Mapping[str, Any]],
    using: str,
    *,
    parent_id: uuid.UUID | None,
    root_id: uuid.UUID | None,
    error: str,
    exception: str,
    is_reliable: Callable[[str], bool],
    owed_by: Callable[[Mapping[str, Any]], tuple[uuid.UUID | None, str]] = lambda step: (None, ""),
) -> None:
    """Steps will not come, because what comes before them has failed: somebody may wait for their results. A row that
    is held for a step fails; where its id exists otherwise, that job stays as it is.

    Args:
        steps: as the message has them, with their ids.
        parent_id: the job that has failed.
        exception: of that one, as message/exception_text.py writes it.
        is_reliable: says of a task's name whether its row is a job.
        owed_by: the group that waits for a step, and its place.
    """
    jobs = []
    for step in steps:
        options, name = step.get("options") or {}, str(step.get("task") or "")
        if not options.get("task_id"):
            continue
        content_type, content_encoding, payload = dumps((step.get("args") or (), step.get("kwargs") or {}, {}), "json")
        headers = {"task": name, "id": options["task_id"]}
        envelope = {"v": ENVELOPE_VERSION, "exchange": "", "routing_key": "", "headers": headers, "properties": {}}
        jobs.append(
            Job(
                id=foreign_id(options["task_id"]),
                task=name[:255],
                queue="",
                status=Status.FAILED,
                reason=Reason.EARLIER_STEP,
                error=clean(error, ERROR_LIMIT),
                exception=exception,
                due_at=Now(),
                finished_at=Now(),
                payload=payload.encode() if isinstance(payload, str) else payload,
                content_type=content_type,
                content_encoding=content_encoding,
                envelope=kombu_json.dumps(envelope),
                root_id=root_id,
                parent_id=parent_id,
                relay_only=not is_reliable(name),
                **dict(zip(("owes", "place"), owed_by(step), strict=True)),
            )
        )
    Job.objects.using(using).bulk_create(jobs, ignore_conflicts=True)
    held = Q(status=Status.WAITING, due_at=None) | Q(status=Status.SENT, reason=Reason.REPLACED)
    rows = Job.objects.using(using).filter(held, pk__in=[job.pk for job in jobs])
    for job in rows.defer("payload", "envelope").lock(wait=True):
        why = clean(error, ERROR_LIMIT)
        transition(job, using, Status.FAILED, reason=Reason.EARLIER_STEP, error=why, exception=exception)
        record(job.pk, using, EventKind.FAILURE, "", why)
    tell([job.pk for job in jobs], using)


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
