"""What a job did, step by step: from the call to its end, the latest first."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable

from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from reliable_jobs.admin.wording import distance, span
from reliable_jobs.message.decode import headers_of
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import Status
from reliable_jobs.translatable import shown


@dataclasses.dataclass(frozen=True)
class Step:
    at: datetime.datetime
    what: str
    who: str = ""
    release: str = ""
    detail: str = ""
    traceback: str = ""


def steps(job: Job, events: Iterable[JobEvent]) -> list[Step]:
    """The events of a job, with what its row says of the call, of the last run and of the end."""
    found = [
        Step(event.at, event.get_kind_display(), event.actor, event.release, shown(event.detail), event.traceback)
        for event in events
    ]
    found.sort(key=lambda step: step.at, reverse=True)
    end = _end(job)
    if end is not None:
        found.insert(0, end)
    if job.run_started_at is not None:
        _put(found, _start(job))
    return [*found, _call(job)]


def _put(found: list[Step], step: Step) -> None:
    """Insert it where its time belongs."""
    place = next((at for at, other in enumerate(found) if other.at <= step.at), len(found))
    found.insert(place, step)


def _call(job: Job) -> Step:
    later = job.due_at if job.requeues == 0 and job.failures == 0 else None
    detail = [_("To queue '%(queue)s'.") % {"queue": job.queue}]
    if later is not None and (later - job.created_at).total_seconds() > 1:
        detail.append(_("To start %(span)s later.") % {"span": span(later - job.created_at)})
    if job.key is not None:
        detail.append(_("Under the key '%(key)s'.") % {"key": job.key})
    return Step(job.created_at, pgettext("event", "enqueued"), _caller(job), detail=" ".join(detail))


def _caller(job: Job) -> str:
    if job.parent_id is not None:
        return _("job %(id)s") % {"id": job.parent_id}
    try:
        return str(headers_of(job).get("origin") or "")
    except (AttributeError, TypeError, ValueError, json.JSONDecodeError):  # a row written by hand
        return ""


def _start(job: Job) -> Step:
    assert job.run_started_at is not None
    waited = ""
    if job.due_at is not None and job.due_at <= job.run_started_at and job.failures == 0:
        waited = _("%(span)s after it was due") % {"span": span(job.run_started_at - job.due_at)}
    what = _("attempt %(number)d began") % {"number": _attempt(job)}
    return Step(job.run_started_at, what, job.worker, job.release, waited)


def _attempt(job: Job) -> int:
    """The number of the attempt that runs, or was the last."""
    failed = job.status in (Status.FAILED, Status.WAITING) and job.failures > 0
    return job.failures if failed else job.attempt


def _end(job: Job) -> Step | None:
    """Only a success writes no event of its own."""
    if job.status != Status.SUCCEEDED or job.finished_at is None:
        return None
    took = ""
    if job.run_started_at is not None:
        took = _("after %(span)s") % {"span": seconds(job.finished_at - job.run_started_at)}
    return Step(job.finished_at, pgettext("event", "succeeded"), job.worker, job.release, took)


def seconds(delta: datetime.timedelta) -> str:
    """How long a run took, to the millisecond where it was short."""
    value = max(0.0, delta.total_seconds())
    return _("%(seconds)s s") % {"seconds": number_format(value, 3)} if value < 10 else distance(delta)
