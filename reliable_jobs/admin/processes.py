"""The page Workers: who works, publishes and sweeps, what each does now, and who is silent."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from reliable_jobs import presence
from reliable_jobs.admin.looking import LookOnly
from reliable_jobs.admin.wording import distance, moment, span
from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.models import Job, Process
from reliable_jobs.presence import Seen, State
from reliable_jobs.status import ProcessKind

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Process]
else:
    _ModelAdmin = admin.ModelAdmin


@dataclasses.dataclass(frozen=True)
class Run:
    """What a worker runs: a job, or something that has no row here (a plain task, a bundle)."""

    task_id: str
    job_id: uuid.UUID | None
    task: str
    seconds: str


@dataclasses.dataclass(frozen=True)
class Shown:
    seen: Seen
    #: What it is.
    kind: str
    #: How it is, and what to do.
    words: str
    runs: list[Run]
    #: When it was seen, and when it started.
    times: str


def words(one: Seen) -> str:
    """How a process is, and what to do about it."""
    if one.state == State.ENDED:
        return _("Ended %(at)s.") % {"at": moment(one.ended_at)}
    if one.state == State.GONE:
        return _(
            "Gone: not seen for %(span)s, and it did not say that it ends. It was killed, or its host is lost. Its "
            "jobs are taken back by the sweeper; start another one."
        ) % {"span": distance(one.ago)}
    if one.state == State.SILENT:
        return _(
            "Silent for %(span)s: one long call keeps it busy, its host or the database is slow, or it has died. Look "
            "at its host."
        ) % {"span": distance(one.ago)}
    if one.kind == ProcessKind.WORKER and not one.broker_ok:
        return _("There, but it takes no messages: it shuts down, or the broker is away. Look at its log.")
    return pgettext("process", "There.")


def shown(using: str) -> list[Shown]:
    """All processes that were seen within a day. Two queries."""
    found = presence.processes(using)
    # Not "_", which is gettext here: Python 3.12 takes it for a local name of the function then.
    ids = {task_id: foreign_id(task_id) for one in found if one.works for task_id, _seconds in one.active}
    jobs = Job.objects.using(using).filter(pk__in=list(ids.values())).values_list("pk", "task") if ids else ()
    tasks = dict(jobs)

    def run(task_id: str, seconds: float, one: Seen) -> Run:
        job_id = ids[task_id]
        known = job_id if job_id in tasks else None
        return Run(task_id, known, tasks.get(job_id, ""), span(datetime.timedelta(seconds=seconds) + one.ago))

    return [
        Shown(
            one,
            str(ProcessKind(one.kind).label) if one.kind in ProcessKind else one.kind,
            words(one),
            [run(task_id, seconds, one) for task_id, seconds in one.active] if one.works else [],
            _("seen %(at)s (%(span)s ago), started %(started)s")
            % {"at": moment(one.seen_at), "span": distance(one.ago), "started": moment(one.started_at)},
        )
        for one in found
    ]


@admin.register(Process)
class ProcessAdmin(LookOnly, _ModelAdmin):
    """One page; nothing is added, changed or deleted here."""

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_changelist"
        return [path("", self.admin_site.admin_view(self.changelist_view), name=name)]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": _("Workers"),
            "opts": self.opts,
            "processes": shown(router.db_for_write(Job)),
            "may_stop": request.user.has_perm("reliable_jobs.stop_job"),
        }
        return TemplateResponse(request, "admin/reliable_jobs/workers.html", context)
