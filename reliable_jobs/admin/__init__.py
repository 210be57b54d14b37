"""The Django admin: which jobs there are, where one stands, and a person's "again" and "never mind".

Nothing is edited, added or deleted by form: lifecycle/ writes, the pruner deletes. story.py says in a sentence where a
job stands and what happens next, reruns.py why it ran more than once, timeline.py what it did, facts.py what its row
says, tree.py draws its workflow, content.py shows arguments and result. listing.py keeps the list cheap, finding.py
finds one job. operations.py has requeue and cancel of a few jobs, acts.py of all that a filter selects, one_job.py what
is done to one alone, pauses.py queues and tasks that are held. overview.py is the landing page, histories.py tells how
one task or queue did, by the numbers of charts.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db import router
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, pgettext_lazy
from django.utils.translation import gettext_lazy as _

from reliable_jobs import presence
from reliable_jobs.admin import (  # noqa: F401 - pauses and processes register themselves
    acts,
    content,
    facts,
    finding,
    histories,
    holders,
    one_job,
    pauses,
    processes,
    reruns,
    story,
    timeline,
    tree,
    wording,
)
from reliable_jobs.admin.listing import PARAMETERS, BoundedPaginator, JobChangeList, SelectionFilter, search
from reliable_jobs.admin.views import OperationViews
from reliable_jobs.clock import Now
from reliable_jobs.dispatch.answers import Depth
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.models import Job, JobEvent, Pause, PauseKind, Verb
from reliable_jobs.presence import Consumers
from reliable_jobs.status import Status

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Job]
else:
    _ModelAdmin = admin.ModelAdmin

#: What a job's page may spend on asking the broker, in seconds.
BROKER_TIMEOUT = 0.5
#: Events that a job's page shows.
EVENTS_SHOWN = 100


@admin.register(Job)
class JobAdmin(acts.ActViews, finding.FindView, histories.HistoryViews, one_job.OneJobViews, OperationViews):
    """Reads and writes the database that jobs are written to. Where jobs are in several, subclass it for another admin
    site and set ``using``."""

    using: str | None = None

    list_display = ("name", "state", "queue", "age", "attempts", "next_look")
    list_display_links = ("name",)
    list_filter = (SelectionFilter,)
    list_per_page = 100
    list_max_show_all = 100
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    ordering = ("-created_at",)
    paginator = BoundedPaginator
    search_fields = ("pk",)  # shows the search box; search() below does the looking up
    search_help_text = _(
        "Find: an exact id, task name or key. To say which: task:shop.tasks.ship, key:order-17; a chord's parts: "
        "group:ID."
    )

    class Media:
        css = {"all": ["reliable_jobs/admin.css"]}

    # --- who may do what ----------------------------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    # --- the list -----------------------------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        # Not a replica: after a requeue the page must show it, and what is read here is written back here.
        return super().get_queryset(request).using(self.using or router.db_for_write(Job))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[JobChangeList]:
        return JobChangeList

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        return lookup in PARAMETERS

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        return search(queryset, self.get_queryset(request), search_term), False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        answer = super().changelist_view(request, extra_context)
        shown = getattr(answer, "context_data", None) or {}
        changes = shown.get("cl")
        if isinstance(changes, JobChangeList):
            may = {str(verb): getattr(self, f"has_{verb}_permission")(request) for verb in Verb}
            # What a search finds is no selection: the filters are.
            shown["offers"] = acts.offers(None if changes.query else changes.selection, may)
        return answer

    @admin.display(description=_("job"))
    def name(self, job: Any) -> SafeString:
        name = format_html('{} <span class="rj-id">{}</span>', job.task or gettext("(no task name)"), str(job.pk)[:8])
        if why := self.why(job):
            name = format_html('{}<span class="rj-why rj-under">{}</span>', name, why)
        # In place of their columns, for which a telephone has no room.
        more = (job.queue, wording.span(job.now - job.created_at), self.attempts(job), self.next_look(job))
        shown = " · ".join(text for text in more if text not in ("", "-"))
        return format_html('{}<span class="rj-why rj-under rj-narrow">{}</span>', name, shown)

    @admin.display(description=_("status"))
    def state(self, job: Any) -> SafeString:
        label = gettext("waiting, held by a run") if job.held else job.get_status_display()
        return format_html('<span class="rj-state rj-{}">{}</span>', "running" if job.held else job.status, label)

    @admin.display(description=_("age"))
    def age(self, job: Any) -> SafeString:
        created = gettext("created %(at)s") % {"at": wording.moment(job.created_at)}
        return format_html('<span title="{}">{}</span>', created, wording.span(job.now - job.created_at))

    @admin.display(description=_("attempts"))
    def attempts(self, job: Job) -> str:
        crashes = facts.crashes(job)
        used = gettext("%(count)d used") % {"count": job.failures}
        crashed = gettext("%(count)d crashed") % {"count": crashes}
        return ", ".join([used] * bool(job.failures) + [crashed] * bool(crashes)) or "-"

    @admin.display(description=pgettext_lazy("column", "next"))
    def next_look(self, job: Any) -> str:
        if job.is_final:
            if job.finished_at is None:
                return "-"
            return gettext("ended %(span)s ago") % {"span": wording.distance(job.now - job.finished_at)}
        if job.status == Status.RUNNING:
            at, ahead, over = job.lease_at, gettext("lease ends in %(span)s"), gettext("lease ended %(span)s ago")
        elif job.sends == 0:
            at, ahead, over = job.due_at, gettext("due in %(span)s"), gettext("due %(span)s ago")
        else:
            at, ahead, over = job.check_at, gettext("check in %(span)s"), gettext("check %(span)s ago")
        if at is None:
            return "-"
        return (ahead if at > job.now else over) % {"span": wording.distance(at - job.now)}

    @staticmethod
    def why(job: Any) -> str:
        """Why it is where it is."""
        reason = job.get_reason_display() if job.reason else ""
        return ": ".join(part for part in (reason, wording.first_line(job.error_start, 100)) if part)

    # --- one job ------------------------------------------------------------------------------------------------------

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Job | None:
        job = super().get_object(request, object_id, from_field)
        if job is not None:
            # The database's clock, not this process's: the job's times are the database's.
            now = self.get_queryset(request).filter(pk=job.pk).annotate(now=Now()).values_list("now", flat=True)
            job.now = now.first() or job.created_at  # type: ignore[attr-defined]
        return job

    def get_fieldsets(self, request: HttpRequest, obj: Job | None = None) -> Any:
        return []  # the page is made of facts.py and timeline.py

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        job = kwargs.get("obj")
        if job is not None:
            using = job._state.db
            events = list(JobEvent.objects.using(using).filter(job_id=job.pk).order_by("-pk")[: EVENTS_SHOWN + 1])
            holder = holders.holders([job.pk], using).get(job.pk)
            workflow = tree.workflow_of(job)
            context.update(
                story=story.tell(
                    *(job, job.now, holder, events[0] if events else None, _depth(job), _pause(job), _consumers(job))
                ),
                reruns=reruns.why(job, events),
                workflow=workflow,
                groups=facts.facts(job),
                timeline=timeline.steps(job, events[:EVENTS_SHOWN]),
                more_events=len(events) > EVENTS_SHOWN,
                events_shown=EVENTS_SHOWN,
                may_requeue=job.status != Status.RUNNING and self.has_requeue_permission(request),
                may_cancel=job.status == Status.WAITING and self.has_cancel_permission(request),
                may_rerun=content.reliable_task(job) is not None and self.has_rerun_permission(request),
                may_stop=(job.status == Status.RUNNING or holder is not None) and self.has_stop_permission(request),
                may_cancel_workflow=workflow is not None
                and job.root_id is not None
                and self.has_cancel_permission(request),
            )
        return super().render_change_form(request, context, *args, **kwargs)


def _consumers(job: Job) -> Consumers | None:
    """Who says that it consumes the queue of a job whose message is out."""
    if job.status != Status.WAITING or not job.sends:
        return None
    return presence.consumers_of(job.queue, job._state.db or "default")


def _depth(job: Job) -> Depth | None:
    """What the broker says of the queue of a job whose message is out; None where it does not say so in time."""
    if job.status != Status.WAITING or not job.sends:
        return None
    return publisher().depths([job.queue], timeout=BROKER_TIMEOUT).get(job.queue)


def _pause(job: Job) -> Pause | None:
    """What holds a waiting job back."""
    if job.status != Status.WAITING:
        return None
    of_job = Q(kind=PauseKind.QUEUE, name=job.queue) | Q(kind=PauseKind.TASK, name=job.task)
    return Pause.objects.using(job._state.db).filter(of_job).first()
