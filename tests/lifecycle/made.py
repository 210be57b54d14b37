"""Rows made as a test wants them, and transitions of them."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import transaction
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.lifecycle import Claim, Refusal
from reliable_jobs.models import Job
from reliable_jobs.status import FINAL, Status
from tests.support.rows import future, past
from tests.testapp import tasks


def make(status: str = Status.WAITING, **values: Any) -> Job:
    given: dict[str, Any] = {
        "task": tasks.effect.name,
        "queue": "celery",
        "status": status,
        "due_at": past(),
        "payload": b"[[], {}, {}]",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "envelope": '{"headers": {}, "properties": {}, "exchange": "", "routing_key": "celery"}',
        "finished_at": past() if status in FINAL else None,
    }
    if status == Status.RUNNING:
        given.update(token=uuid.uuid4(), lease_at=future(), crashes=1)
    job = Job(**{**given, **values})
    job.save(force_insert=True)
    return Job.objects.get(pk=job.pk)


def claim(job: Job) -> Claim:
    return Claim(Job.objects.get(pk=job.pk), "default", timezone.now(), job.token)


def claim_atomic(job_id: uuid.UUID, content_version: int = 0) -> Claim | Refusal:
    with transaction.atomic():
        return lifecycle.claim_atomic(job_id, content_version, "default")


def claim_committed(
    job_id: uuid.UUID, content_version: int = 0, worker: str = "w@h pid 1 #a", **options: Any
) -> Claim | Refusal:
    return lifecycle.claim_committed(job_id, content_version, "default", worker=worker, lease=10, **options)
