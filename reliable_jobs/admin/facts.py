"""What a job's row says, for its page: in groups, without what is empty, times to the second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import pgettext, pgettext_lazy

from reliable_jobs.admin import content
from reliable_jobs.admin.wording import moment, number
from reliable_jobs.models import Job
from reliable_jobs.status import Status
from reliable_jobs.translatable import shown


class Group(NamedTuple):
    title: str
    #: Label and value.
    facts: list[tuple[str, str | SafeString]]


#: Counters that are worth a line when they are above zero.
_COUNTERS = {
    "failures": pgettext_lazy("fact", "attempts used up"),
    "interruptions": pgettext_lazy("fact", "interruptions"),
    "requeues": pgettext_lazy("fact", "requeues"),
    "sends": pgettext_lazy("fact", "messages sent since it last became waiting"),
}
_TIMES = {
    "created_at": pgettext_lazy("fact", "enqueued"),
    "due_at": pgettext_lazy("fact", "due"),
    "started_at": pgettext_lazy("fact", "first started"),
    "run_started_at": pgettext_lazy("fact", "last run started"),
    "finished_at": pgettext_lazy("fact", "ended"),
    "check_at": pgettext_lazy("fact", "sweeper looks again"),
    "lease_at": pgettext_lazy("fact", "lease ends"),
    "deadline_at": pgettext_lazy("fact", "given up"),
    "expires_at": pgettext_lazy("fact", "expires"),
}


def facts(job: Job) -> list[Group]:
    """The groups that have something to say."""
    groups = (
        Group(pgettext("facts", "Job"), list(_identity(job))),
        Group(pgettext("facts", "What it was given"), [(_("arguments"), _block(content.shown_arguments(job)))]),
        Group(pgettext("facts", "What came of it"), list(_outcome(job))),
        Group(pgettext("facts", "Counters"), list(_counters(job))),
        Group(pgettext("facts", "Times"), list(_times(job))),
    )
    return [group for group in groups if group.facts]


def crashes(job: Job) -> int:
    """Starts that never reported. A run in progress is counted as one until it reports; it is none yet."""
    return max(0, job.crashes - 1) if job.status == Status.RUNNING else job.crashes


def _identity(job: Job) -> Iterator[tuple[str, str | SafeString]]:
    reason = f" ({job.get_reason_display()})" if job.reason else ""
    state = format_html('<span class="rj-state rj-{}">{}</span>{}', job.status, job.get_status_display(), reason)
    yield pgettext("fact", "id"), str(job.pk)
    yield pgettext("fact", "task"), job.task or _("(no task name)")
    yield pgettext("fact", "status"), state
    yield pgettext("fact", "queue"), job.queue or pgettext("queue", "(none)")
    if job.priority is not None:
        yield pgettext("fact", "priority"), str(job.priority)
    if job.key is not None:
        yield pgettext("fact", "key"), _("%(key)s (for ever)") % {"key": job.key} if job.key_forever else job.key
    if job.worker:
        yield pgettext("fact", "last worker"), job.worker
    if job.release:
        yield pgettext("fact", "release of that worker"), job.release


def _outcome(job: Job) -> Iterator[tuple[str, SafeString]]:
    if job.error:
        yield pgettext("fact", "error"), _block(content.Shown(shown(job.error)))
    if job.traceback:
        yield pgettext("fact", "traceback"), _block(content.Shown(job.traceback))
    if job.result is not None or job.status == Status.SUCCEEDED:
        yield pgettext("fact", "result"), _block(content.shown_result(job))


def _times(job: Job) -> Iterator[tuple[str, str]]:
    for name, label in _TIMES.items():
        if at := getattr(job, name):
            yield str(label), moment(at)


def _counters(job: Job) -> Iterator[tuple[str, str]]:
    for name, label in _COUNTERS.items():
        if getattr(job, name):
            yield str(label), number(getattr(job, name))
    if crashes(job):
        yield pgettext("fact", "starts that never reported"), number(crashes(job))
    if job.content_version:
        yield pgettext("fact", "content version"), number(job.content_version)


def _block(shown: content.Shown) -> SafeString:
    note = format_html('<p class="rj-note">{}</p>', shown.note) if shown.note else ""
    text = format_html('<pre class="rj-text">{}</pre>', shown.text) if shown.text else ""
    return format_html("{}{}", note, text) if note or text else SafeString("-")
