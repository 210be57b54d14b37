"""The Django admin: which jobs there are, where one stands, and a person's "again" and "never mind".

Nothing is edited, added or deleted by form: lifecycle/ writes, the pruner deletes. story.py says in a sentence where a
job stands and what happens next, tree.py draws its workflow, content.py shows arguments and result, listing.py keeps
the list cheap, operations.py has requeue and cancel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from reliable_jobs.admin import content, story, tree
from reliable_jobs.admin.listing import BoundedPaginator, CreatedFilter, JobChangeList, ShowFilter, search
from reliable_jobs.admin.views import OperationViews
from reliable_jobs.clock import Now
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.dispatch.receipt import Depth
from reliable_jobs.models import Job, JobEvent
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
class JobAdmin(OperationViews):
    """Reads and writes the database that jobs are written to. Where jobs are in several, subclass it for another admin
    site and set ``using``."""

    using: str | None = None

    list_display = ("name", "state", "queue", "age", "attempts", "next_look", "why")
    list_display_links = ("name",)
    list_filter = (ShowFilter, CreatedFilter)
    list_per_page = 100
    list_max_show_all = 100
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    ordering = ("-created_at",)
    paginator = BoundedPaginator
    search_fields = ("pk",)  # shows the search box; search() below does the looking up
    search_help_text = (
        "An exact id, task name or key. To say which: task:shop.tasks.ship, key:order-17; a chord's parts: group:ID."
    )
    fieldsets = (
        (None, {"fields": ("identity", "task", "shown_status", "queue", "priority", "key", "shown_worker")}),
        ("What it was given", {"fields": ("arguments",)}),
        ("What came of it", {"fields": ("shown_error", "shown_traceback", "shown_result")}),
        (
            "Counters",
            {"fields": ("failures", "shown_crashes", "interruptions", "requeues", "sends", "epoch", "content_version")},
        ),
        (
            "Times",
            {
                "fields": (
                    *("created_at", "due_at", "check_at", "started_at", "finished_at"),
                    *("lease_at", "deadline_at", "expires_at"),
                )
            },
        ),
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
        return lookup in (ShowFilter.parameter_name, CreatedFilter.parameter_name)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        return search(queryset, self.get_queryset(request), search_term), False

    @admin.display(description="job")
    def name(self, job: Job) -> SafeString:
        return format_html('{} <span class="rj-id">{}</span>', job.task or "(no task name)", str(job.pk)[:8])

    @admin.display(description="status")
    def state(self, job: Any) -> SafeString:
        label = "waiting, held by a run" if job.held else job.get_status_display()
        return format_html('<span class="rj-state rj-{}">{}</span>', "running" if job.held else job.status, label)

    @admin.display(description="age")
    def age(self, job: Any) -> SafeString:
        return format_html(
            '<span title="created {}">{}</span>', story.moment(job.created_at), story.span(job.now - job.created_at)
        )

    @admin.display(description="attempts")
    def attempts(self, job: Job) -> str:
        crashes = _crashes(job)
        return (
            f"{job.failures} used" * bool(job.failures)
            + ", " * bool(job.failures and crashes)
            + (f"{crashes} crashed" * bool(crashes))
            or "-"
        )

    @admin.display(description="next")
    def next_look(self, job: Any) -> str:
        if job.is_final:
            return f"ended {story.span(job.now - job.finished_at)} ago" if job.finished_at else "-"
        if job.status == Status.RUNNING:
            label, at = "lease", job.lease_at
        elif job.sends == 0:
            label, at = "due", job.due_at
        else:
            label, at = "check", job.check_at
        if at is None:
            return "-"
        return f"{label} in {story.span(at - job.now)}" if at > job.now else f"{label} {story.span(job.now - at)} ago"

    @admin.display(description="why")
    def why(self, job: Any) -> str:
        reason = job.get_reason_display() if job.reason else ""
        return ": ".join(part for part in (reason, story.first_line(job.error_start, 100)) if part) or "-"

    # --- one job ------------------------------------------------------------------------------------------------------

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Job | None:
        job = super().get_object(request, object_id, from_field)
        if job is not None:
            # The database's clock, not this process's: the job's times are the database's.
            now = self.get_queryset(request).filter(pk=job.pk).annotate(now=Now()).values_list("now", flat=True)
            job.now = now.first() or job.created_at  # type: ignore[attr-defined]
        return job

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        job = kwargs.get("obj")
        if job is not None:
            using = job._state.db
            events = list(JobEvent.objects.using(using).filter(job_id=job.pk).order_by("-pk")[: EVENTS_SHOWN + 1])
            holder = story.holders([job.pk], using).get(job.pk)
            workflow = tree.workflow_of(job)
            context.update(
                story=story.tell(job, job.now, holder, events[0] if events else None, _depth(job)),
                workflow=workflow,
                events=events[:EVENTS_SHOWN],
                more_events=len(events) > EVENTS_SHOWN,
                events_shown=EVENTS_SHOWN,
                may_requeue=job.status != Status.RUNNING and self.has_requeue_permission(request),
                may_cancel=job.status == Status.WAITING and self.has_cancel_permission(request),
                may_cancel_workflow=workflow is not None
                and job.root_id is not None
                and self.has_cancel_permission(request),
            )
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description="id")
    def identity(self, job: Job) -> str:
        return str(job.pk)

    @admin.display(description="status")
    def shown_status(self, job: Job) -> SafeString:
        reason = f" ({job.get_reason_display()})" if job.reason else ""
        return format_html('<span class="rj-state rj-{}">{}</span>{}', job.status, job.get_status_display(), reason)

    @admin.display(description="last worker")
    def shown_worker(self, job: Job) -> str:
        return job.worker or "-"

    @admin.display(description="crashes")
    def shown_crashes(self, job: Job) -> int:
        return _crashes(job)

    @admin.display(description="arguments")
    def arguments(self, job: Job) -> SafeString:
        return _block(content.shown_arguments(job))

    @admin.display(description="result")
    def shown_result(self, job: Job) -> SafeString:
        return _block(content.shown_result(job))

    @admin.display(description="error")
    def shown_error(self, job: Job) -> SafeString:
        return _block(content.Shown(job.error))

    @admin.display(description="traceback")
    def shown_traceback(self, job: Job) -> SafeString:
        return _block(content.Shown(job.traceback))


def _depth(job: Job) -> Depth | None:
    """What the broker says of the queue of a job whose message is out; None where it does not say so in time."""
    if job.status != Status.WAITING or not job.sends:
        return None
    return publisher().depths([job.queue], timeout=BROKER_TIMEOUT).get(job.queue)


def _crashes(job: Job) -> int:
    """Starts that never reported. A run in progress is counted as one until it reports; it is none yet."""
    return max(0, job.crashes - 1) if job.status == Status.RUNNING else job.crashes


def _block(shown: content.Shown) -> SafeString:
    note = format_html('<p class="rj-note">{}</p>', shown.note) if shown.note else ""
    text = format_html('<pre class="rj-text">{}</pre>', shown.text) if shown.text else ""
    return format_html("{}{}", note, text) if note or text else SafeString("-")
