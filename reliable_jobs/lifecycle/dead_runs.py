"""Runs that have died: taking their jobs back, and how they ended, as their workers' parent processes saw it."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence

from django.db import connections, transaction

from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle.delays import crash_delay
from reliable_jobs.lifecycle.listeners import tell
from reliable_jobs.lifecycle.transition import record, transition
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind, Reason, Status


def rescue(using: str, limit: int, *, actor: str = "sweeper", after_restart: bool = False) -> int:
    """Take jobs back from dead runs: the lease is over and nobody holds the row. Returns how many.

    Args:
        after_restart: also where the database has not been up for a lease. Its clients may not have reconnected yet.
    """
    if not after_restart and not _has_been_up_for_a_lease(using):
        return 0
    with transaction.atomic(using=using):
        lost = list(Job.objects.using(using).lost_runs().defer("payload", "envelope").lock()[:limit])
        if not lost:
            return 0
        rescued = 0
        how_ended = _deaths(lost, using)
        for job in lost:
            death = how_ended.get(job.pk)
            how = f"was ended: {death.detail}" if death else "ended without a word"
            why = f"run {job.token} on {job.worker or 'an unknown worker'} {how} (start {job.crashes})"
            if transition(
                job,
                using,
                Status.WAITING,
                token=None,
                lease_at=None,
                deadline_at=None,
                sends=0,
                check_at=None,
                due_at=Now() + datetime.timedelta(seconds=crash_delay(job.crashes) if job.crashes > 1 else 0),
                reason=Reason.TIME_LIMIT if death and death.kind == EventKind.TIME_LIMIT else Reason.CRASH,
            ):
                # A death that its parent process saw has been counted with the event of that.
                ended = None if death else False
                record(job, using, EventKind.RESCUE, actor, why, final=ended, release=job.release)
                tell([job.pk], using)
                rescued += 1
    return rescued


def _has_been_up_for_a_lease(using: str) -> bool:
    if connections[using].vendor != "postgresql":
        return True
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT clock_timestamp() - pg_postmaster_start_time() > make_interval(secs => %s)", [settings.LEASE]
        )
        return bool(cursor.fetchone()[0])


def _deaths(lost: Sequence[Job], using: str) -> dict[uuid.UUID, JobEvent]:
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
