"""The pages Tasks and Queues, and those of one task and one queue: how it did within an hour, a day, a week.

All numbers of the past are the rollup's (sweep/statistics.py). A name comes in the query string, because it may hold
anything; at most ten queries make a page.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext

from reliable_jobs import lifecycle, presence
from reliable_jobs.admin import charts
from reliable_jobs.admin.chosen import selectable
from reliable_jobs.admin.overview import Depth, Failing, said_of_pause
from reliable_jobs.admin.views import OperationViews
from reliable_jobs.health import figures
from reliable_jobs.models import PauseKind

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

    _JobAdmin = OperationViews
else:
    _JobAdmin = object

#: What jobs are told apart by, and the page of all.
KINDS: dict[str, tuple[str, StrPromise]] = {
    "task": ("tasks", gettext_lazy("Tasks")),
    "queue": ("queues", gettext_lazy("Queues")),
}


class HistoryViews(_JobAdmin):
    """The part of JobAdmin that tells of tasks and queues."""

    def get_urls(self) -> list[URLPattern]:
        views: list[tuple[str, Callable[..., HttpResponse]]] = []
        for kind, (plural, _title) in KINDS.items():
            views += [(plural, functools.partial(self.all_view, kind)), (kind, functools.partial(self.one_view, kind))]
        prefix = f"{self.opts.app_label}_{self.opts.model_name}"
        own = [path(f"{name}/", self.admin_site.admin_view(view), name=f"{prefix}_{name}") for name, view in views]
        return own + super().get_urls()

    def all_view(self, kind: str, request: HttpRequest) -> HttpResponse:
        """All tasks or queues of which something ended within the period; of queues also those that hold a job now."""
        self._check(request)
        using = self.get_queryset(request).db
        period = charts.period_of(request.GET.get("period", ""))
        processes = presence.processes(using)
        now = presence.clock(processes)
        rows = charts.rows(using, kind, period, now)
        more: dict[str, Any] = {"rows": rows}
        if kind == PauseKind.QUEUE:
            living, pauses = [one for one in processes if one.works], lifecycle.paused(using, kind)
            found = figures.depths(using, now, living, pauses, figures.ended_lately(using, now))
            more["depths"] = [Depth(**vars(one)) for one in found]
        return self._answer(request, kind, "all", KINDS[kind][1], period, now, more)

    def one_view(self, kind: str, request: HttpRequest) -> HttpResponse:
        """The task or queue that ``name`` says. Of one that nothing is known of, the page says so."""
        self._check(request)
        name = request.GET.get("name")
        if name is None or "\x00" in name:
            return HttpResponseRedirect(self._page(KINDS[kind][0]))
        using = self.get_queryset(request).db
        period = charts.period_of(request.GET.get("period", ""))
        only = {kind: name}
        processes = presence.processes(using)
        now = presence.clock(processes)
        pauses = [pause for pause in lifecycle.paused(using, kind) if pause.name == name]
        failing = sorted(
            (Failing(**vars(one)) for one in figures.failing(using, now, only)), key=lambda one: -one.lately
        )
        more: dict[str, Any] = {
            "name": name,
            "selectable": selectable(name),
            "paused": bool(pauses),
            "paused_text": said_of_pause(pauses[0]) if pauses else "",
            "failing": failing,
            "points": charts.points(using, period, now, only),
            "lists": self._lists(kind, name, now) if selectable(name) else [],
        }
        if kind == PauseKind.QUEUE:
            living = [one for one in processes if one.works and name in one.queues]
            ended = [one for one in figures.ended_lately(using, now) if one.queue == name]
            depths = (Depth(**vars(one)) for one in figures.depths(using, now, living, pauses, ended, only))
            more["depths"] = [next((one for one in depths if one.queue == name), Depth(name))]
            more["tasks"] = charts.rows(using, "task", period, now, only, charts.TASKS_SHOWN)
            more["depth_points"] = charts.depths(using, name, period, now)
        else:
            more["queues"] = charts.rows(using, "queue", period, now, only, charts.TASKS_SHOWN)
            more["releases"] = charts.rows(using, "release", period, now, only, charts.TASKS_SHOWN)
        return self._answer(request, kind, "one", _title(kind, name), period, now, more)

    def _check(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied

    def _lists(self, kind: str, name: str, now: Any) -> list[tuple[str, str]]:
        """Lists of its jobs: what they are called, and their address."""
        since = (now - figures.FAILING_SINCE).isoformat()
        states: list[tuple[str, dict[str, str]]] = [
            (_("All jobs"), {}),
            (pgettext("list", "Waiting"), {"state": "waiting"}),
            (pgettext("list", "Running"), {"state": "running"}),
            (_("Failing now: waiting for another attempt"), {"state": "retrying"}),
            (_("Failed, last 24 hours"), {"state": "failed", "since": since}),
        ]
        listed = self._page("changelist")
        return [(label, f"{listed}?{urlencode({**chosen, kind: name})}") for label, chosen in states]

    def _answer(
        self,
        request: HttpRequest,
        kind: str,
        page: str,
        title: StrPromise | str,
        period: charts.Period,
        now: Any,
        more: dict[str, Any],
    ) -> HttpResponse:
        user: Any = request.user
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "kind": kind,
            "all_name": KINDS[kind][1],
            "all_address": self._page(KINDS[kind][0]),
            "period": period,
            "periods": charts.PERIODS,
            "now": now,
            # Kept by the links to other periods.
            "kept": urlencode({"name": more["name"]}) + "&" if "name" in more else "",
            "may_requeue": self.has_requeue_permission(request),
            "may_pause": user.has_perm("reliable_jobs.pause_job"),
            **more,
        }
        return TemplateResponse(request, f"admin/reliable_jobs/history/{page}.html", context)


def _title(kind: str, name: str) -> str:
    if kind == PauseKind.TASK:
        return _("Task %(name)s") % {"name": name or _("(no task name)")}
    return _("Queue %(name)s") % {"name": name or pgettext("queue", "(none)")}
