"""How runs have died, as their workers' parent processes saw it."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence

from reliable_jobs.conf import settings
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind


def deaths(lost: Sequence[Job], using: str) -> dict[uuid.UUID, JobEvent]:
    """What the parent processes saw of the ends of these runs: events since each run last showed a sign of life."""
    since = {
        job.pk: job.lease_at - datetime.timedelta(seconds=settings.LEASE + 1.0)
        for job in lost
        if job.lease_at is not None
    }
    events = JobEvent.objects.using(using).filter(
        job_id__in=list(since), kind__in=[EventKind.CRASH, EventKind.TIME_LIMIT]
    )
    return {event.job_id: event for event in events.order_by("pk") if event.at >= since[event.job_id]}


def last_death(job_id: uuid.UUID, using: str) -> JobEvent | None:
    """The latest event that says how a run of this job died, as its worker's parent process saw it."""
    return (
        JobEvent.objects.using(using)
        .filter(job_id=job_id, kind__in=[EventKind.CRASH, EventKind.TIME_LIMIT])
        .order_by("-pk")
        .first()
    )
