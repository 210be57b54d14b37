"""Why a job ran more than once, and what that means for its effects."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.translation import gettext as _

from reliable_jobs.admin.content import reliable_task
from reliable_jobs.admin.wording import first_line, moment
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind

#: Causes that are named, the latest ones.
SHOWN = 4


def why(job: Job, events: Sequence[JobEvent]) -> str:
    """In sentences; "" of a job that nothing has made run again.

    Args:
        events: of the job, the latest first.
    """
    causes = [text for text in map(_cause, events) if text]
    if not causes:
        return ""
    named = "; ".join(reversed(causes[:SHOWN]))
    more = "… " if len(causes) > SHOWN else ""
    return " ".join([_("Why it runs more than once: %(causes)s.") % {"causes": more + named}, _effects(job)])


def _cause(event: JobEvent) -> str:
    values = {"at": moment(event.at), "who": event.actor or "-"}
    if event.kind == EventKind.REQUEUE:
        return _("requeued by %(who)s at %(at)s") % values
    if event.final is not False:  # the job ended with it, or it was no end of a run
        return ""
    if event.kind in (EventKind.CRASH, EventKind.TIME_LIMIT):
        return _("its process died at %(at)s") % values
    if event.kind == EventKind.RESCUE:
        return _("taken back from its worker at %(at)s") % values
    if event.kind == EventKind.INTERRUPTION:
        return _("its run was interrupted at %(at)s") % values
    if event.kind == EventKind.FAILURE:
        error = event.error_class or first_line(event.detail, 80)
        return _("an attempt failed at %(at)s (%(error)s)") % {**values, "error": error}
    return ""


def _effects(job: Job) -> str:
    task = reliable_task(job)
    if task is None:
        return ""
    if task.atomic:
        return _(
            "What a run that did not succeed wrote to the database was rolled back; what it did elsewhere may have "
            "happened each time."
        )
    return _("It is not atomic: what a run did before it broke off stays done.")
