"""The sentences of a job that has ended: how, when, and what can be done."""

from __future__ import annotations

import datetime

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from reliable_jobs.admin.wording import distance, first_line, moment, span
from reliable_jobs.conf import settings
from reliable_jobs.models import Job
from reliable_jobs.status import Reason, Status


def when(job: Job, now: datetime.datetime) -> str:
    """When it ended, and how long after its first start a success did."""
    if job.finished_at is None:
        return ""
    values = {"at": moment(job.finished_at), "span": distance(now - job.finished_at)}
    if job.status == Status.SUCCEEDED and job.started_at is not None and job.finished_at >= job.started_at:
        values["took"] = span(job.finished_at - job.started_at)
        return _("Ended %(at)s (%(span)s ago), %(took)s after its first start.") % values
    return _("Ended %(at)s (%(span)s ago).") % values


def succeeded(job: Job) -> str:
    if job.reason == Reason.IGNORED:
        return _("Ended by its own wish (Ignore), without a result.")
    return _("Succeeded.")


def attempt(job: Job) -> str:
    """Which attempt succeeded, where it was not the first."""
    return _("It was attempt %(number)d.") % {"number": job.attempt} if job.failures else ""


def cancelled(job: Job) -> str:
    actor = job.error.removeprefix("cancelled by ") if job.error.startswith("cancelled by ") else ""
    if job.reason == Reason.REVOKED:
        return _("Revoked by %(actor)s.") % {"actor": actor} if actor else _("Revoked.")
    return _("Cancelled by %(actor)s.") % {"actor": actor} if actor else _("Cancelled.")


def failed(job: Job) -> str:
    """Why, and what to do."""
    values = {"error": error(job), "count": job.crashes}
    if job.reason == Reason.PARKED:
        return _("Parked: %(error)s. Requeue it once the workers have the code.") % values
    if job.reason == Reason.TIME_LIMIT:
        text = ngettext(
            "Failed: %(count)d start never reported; it was killed by the hard time limit. Requeue it when the cause "
            "is fixed.",
            "Failed: %(count)d starts never reported, the last one killed by the hard time limit. Requeue it when the "
            "cause is fixed.",
            job.crashes,
        )
        return text % values
    if job.reason == Reason.CRASH:
        text = ngettext(
            "Failed: %(count)d start never reported. Requeue it when the cause is fixed.",
            "Failed: %(count)d starts never reported. Requeue it when the cause is fixed.",
            job.crashes,
        )
        return text % values
    if job.reason == Reason.INTERRUPTED:
        # Too many times; or once, where its task has reruns = False: the error says which.
        return _("Failed: interrupted. %(error)s. Requeue it when the cause is fixed.") % values
    if job.reason == Reason.UNROUTABLE:
        return _("Failed: no queue took its message (%(error)s). Requeue it when the queue exists.") % values
    if job.reason == Reason.EARLIER_STEP:
        return _("Failed: %(error)s. Requeue that job when the cause is fixed; this one follows it.") % values
    if job.reason == Reason.REJECTED:
        return _("Failed: the task rejected it (%(error)s). Requeue it when the cause is fixed.") % values
    text = ngettext(
        "Failed after %(count)d attempt: %(error)s. Nothing more happens by itself; requeue it when the cause is "
        "fixed.",
        "Failed after %(count)d attempts: %(error)s. Nothing more happens by itself; requeue it when the cause is "
        "fixed.",
        job.failures,
    )
    return text % (values | {"count": job.failures})


def kept(job: Job) -> str:
    days = settings.RETENTION.get(job.status)
    if days is None or job.finished_at is None:
        return ""
    return _("Kept until about %(day)s.") % {"day": moment(job.finished_at + datetime.timedelta(days=days))[:10]}


def error(job: Job) -> str:
    """The first line of its error."""
    return first_line(job.error) or _("no error was recorded")
