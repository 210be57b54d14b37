"""What becomes of rows whose messages the broker did not confirm, after their sends have been counted."""

from __future__ import annotations

import datetime
import logging
import uuid
from typing import Any

from reliable_jobs import lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.dispatch.answers import Confirms
from reliable_jobs.logs import fields
from reliable_jobs.message.row_to_message import RowToSend
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind, Status

logger = logging.getLogger(__name__)


def take_back(alias: str, jobs: list[RowToSend], confirms: Confirms) -> None:
    """What a failed batch did not confirm goes back: it costs no doubling. What was returned keeps its doubling, so
    that an exchange that does not exist is not tried every second, and says so in the job's history. If its task is not
    a reliable one, it is failed."""
    returned = [job for job in jobs if job.pk in confirms.returned]
    rest = [job for job in jobs if job.pk not in confirms.returned]
    for sends in {job.sends for job in rest}:
        ids = [job.pk for job in rest if job.sends == sends]
        changes: dict[str, Any] = {"sends": sends - 1}
        if sends > 1:
            changes["check_at"] = Now() + datetime.timedelta(seconds=settings.GRACE)
        # Only where ``sends`` is still ours: another sweeper may have sent the row since.
        Job.objects.using(alias).filter(pk__in=ids, sends=sends).still(Status.WAITING).update(**changes)
    for job in returned:
        about = fields(job.pk, job.task, job.queue)
        logger.warning("Job %s was not routed: %s", job.pk, confirms.returned[job.pk], extra=about)
    relayed = {job.pk: confirms.returned[job.pk] for job in returned if job.relay_only}
    if relayed:
        lifecycle.fail_unsendable(relayed, alias, actor="sweeper")
    _record_returns(alias, {job: confirms.returned[job.pk] for job in returned if job.pk not in relayed})


def _record_returns(alias: str, returned: dict[RowToSend, str]) -> None:
    """Of returns in succession the history keeps the first and the latest: an exchange may be missing for weeks."""
    if not returned:
        return
    history: dict[uuid.UUID, list[JobEvent]] = {}
    for event in (
        JobEvent.objects.using(alias)
        .filter(job__in=[job.pk for job in returned])
        .only("job_id", "kind")
        .order_by("-pk")
    ):
        history.setdefault(event.job_id, []).append(event)
    new = []
    for job, why in returned.items():
        newest = history.get(job.pk, [])[:2]
        if [event.kind for event in newest] == [EventKind.UNROUTABLE] * 2:
            JobEvent.objects.using(alias).filter(pk=newest[0].pk).update(at=Now(), detail=why)
        else:
            new.append(lifecycle.event(job, EventKind.UNROUTABLE, "sweeper", why))
    JobEvent.objects.using(alias).bulk_create(new)
