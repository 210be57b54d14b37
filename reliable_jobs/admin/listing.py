"""The list at a flat cost: no query of it grows with the table.

It shows the first :data:`BOUND` jobs of what was asked for, and counts no further: the newest; of those that have ended
in one way, the last that did; of waiting ones, those that are due first. The filters are a ``Selection``, whose
conditions have indexes; a search looks for exact values, and nothing else can be asked for: no ``?o=``, no
facets, no field lookups in the address (which would also let a viewer guess at hidden arguments).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from celery import current_app
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import connections
from django.db.models import QuerySet, Value
from django.db.models.functions import Left
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from reliable_jobs import queues
from reliable_jobs.admin.holders import holders
from reliable_jobs.admin.wording import state_label
from reliable_jobs.clock import Now
from reliable_jobs.message.row_to_message import as_uuid, foreign_id
from reliable_jobs.models import Job, Selection
from reliable_jobs.models.selection import STATES
from reliable_jobs.status import Status
from reliable_jobs.translatable import shown

if TYPE_CHECKING:
    _ChangeList = ChangeList
    _Paginator = Paginator[Job]
else:
    _ChangeList, _Paginator = ChangeList, Paginator

#: Jobs that the list pages through and that one action takes.
BOUND = 10_000
#: Columns that a list of many jobs has no use for.
HEAVY = ("payload", "envelope", "result", "error", "traceback")


class BoundedPaginator(_Paginator):
    """Counts to BOUND and no further."""

    @cached_property
    def _counted(self) -> int:
        rows: Any = self.object_list
        rows = rows.order_by()
        if connections[rows.db].vendor == "postgresql":
            # Of no column, so that an index alone answers: with columns it read each row. Others know no such SELECT.
            rows = rows.values(one=Value(1))
        return int(rows[: BOUND + 1].count())

    @cached_property
    def count(self) -> int:
        return min(self._counted, BOUND)

    @property
    def more(self) -> bool:
        """Whether there are jobs beyond those that are counted."""
        return self._counted > BOUND


class JobChangeList(_ChangeList):
    @property
    def selection(self) -> Selection | None:
        """What the filters choose; None where a value can't be one."""
        return next((spec.selection for spec in self.filter_specs if isinstance(spec, SelectionFilter)), None)

    @cached_property
    def suggestions(self) -> dict[str, list[str]]:
        return suggestions(self.root_queryset.db)

    @property
    def states(self) -> list[tuple[str, str]]:
        """Those to choose from, and what they are called."""
        return [(state, state_label(state)) for state in STATES]

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        return _as_shown(super().get_queryset(request, *args, **kwargs))

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        # Without the primary key that Django adds: 100,000 jobs of one bulk insert have one time, and sorting them by
        # id took 90 ms where the index alone takes 0.1. Among equals the index's own order is as good.
        return [self.selection.order if self.selection else "-created_at"]

    @property
    def _waiting_alone(self) -> bool:
        return self.selection == Selection(state="waiting") and not self.query

    def get_ordering_field_columns(self) -> dict[int, Any]:
        return {}

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        using, size = self.root_queryset.db, self.list_per_page
        if self._waiting_alone:
            ids = first_waiting(using, (self.page_num - 1) * size if self.multi_page else 0, size)
            rows: Any = self.root_queryset  # a JobQuerySet: that of Job, narrowed by the model admin
            found = _as_shown(rows.filter(pk__in=ids).still(Status.WAITING)).in_bulk()
            self.result_list = [found[pk] for pk in ids if pk in found]
        else:
            # Where everything fits on one page Django asks without a LIMIT.
            self.result_list = list(self.result_list if self.multi_page else self.queryset[:size])
        waiting = [job.pk for job in self.result_list if job.status == Status.WAITING]
        held = holders(waiting, using)
        for job in self.result_list:
            job.held = held.get(job.pk)


def _as_shown(rows: QuerySet[Any]) -> QuerySet[Any]:
    return rows.defer(*HEAVY).annotate(now=Now(), error_start=Left("error", 200))


def first_waiting(using: str, start: int, count: int) -> list[uuid.UUID]:
    """Waiting jobs of all queues, in the order in which they are due; held ones are last.

    The queues are merged, each read by the index that begins with it: in one that begins with the due time, the rows of
    a paused queue would lie before all others.
    """
    rows = Job.objects.using(using).filter(status=Status.WAITING)
    if connections[using].vendor != "postgresql":  # no merging of sorted queries: it sorts them
        return list(rows.order_by("due_at").values_list("pk", flat=True)[start : start + count])
    each = [
        rows.filter(queue=queue).order_by("due_at").values_list("pk", "due_at")[: start + count]
        for queue in queues.with_any(queues.WAITING, using)
    ]
    if not each:
        return []
    merged = each[0].union(*each[1:], all=True).order_by("due_at") if len(each) > 1 else each[0]
    return [pk for pk, _when in merged[start : start + count]]


#: Failed jobs that are looked through for error classes and releases to suggest.
SUGGESTED_FROM = 1000
#: Parameters of the list's address that choose jobs.
PARAMETERS = ("state", "task", "queue", "error", "release", "since", "until", "key", "id", "act")


class SelectionFilter(admin.ListFilter):
    """The filters above the list, all in one: they are a :class:`Selection`."""

    title = _("jobs")

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        given = {name: params.pop(name)[-1] for name in PARAMETERS if name in params}
        self.values = {name: value for name, value in given.items() if value.strip()}
        self.selection: Selection | None = None
        try:
            self.selection = Selection.from_dict(self.values)
        except ValueError as error:
            messages.error(request, _("Nothing is listed: %(why)s") % {"why": shown(error.args[0])})

    def expected_parameters(self) -> list[str | None]:
        return list(PARAMETERS)

    def has_output(self) -> bool:
        return True  # Django applies no other ones

    def choices(self, changelist: Any) -> Iterator[Any]:
        return iter(())  # change_list.html has a form instead of a list of links

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        rows: Any = queryset  # the manager's class, which Django's types do not know of here
        return rows.none() if self.selection is None else self.selection.narrow(rows)


def suggestions(using: str) -> dict[str, list[str]]:
    """Values that the filters propose: of tasks and queues what this process knows, of errors and releases those of the
    latest failures. One query."""
    latest = Job.objects.using(using).filter(status=Status.FAILED).order_by("-finished_at")
    failed = set(latest.values_list("error_class", "release")[:SUGGESTED_FROM])
    return {
        "task": sorted(name for name, task in current_app.tasks.items() if getattr(task, "writes_outbox", False)),
        "queue": known_queues(),
        "error": sorted({error for error, _release in failed if error}),
        "release": sorted({release for _error, release in failed if release}),
    }


def known_queues() -> list[str]:
    """The queues that Celery is configured with, to suggest; another one may be named too."""
    return sorted(current_app.amqp.queues)


def search(rows: QuerySet[Any], everything: QuerySet[Any], term: str) -> QuerySet[Any]:
    """The rows whose id, task or key is exactly the term; ``id:``, ``task:`` or ``key:`` before it says which.
    ``group:`` finds the jobs that a chord waits for.

    One field is searched, the first that has the value: an OR over several would leave PostgreSQL without an index that
    is also in the list's order.

    Args:
        rows: what to narrow.
        everything: all jobs of the same database, to see which field has the value.
    """
    term = term.strip().replace("\x00", "")
    if not term:
        return rows
    prefix, _colon, rest = term.partition(":")
    field, value = (prefix, rest.strip()) if prefix in ("id", "task", "key", "group") else ("", term)
    # A Celery task id that is no UUID has a job id derived from it.
    job_id = as_uuid(value) or foreign_id(value)
    conditions: dict[str, dict[str, Any]] = {"id": {"pk": job_id}, "task": {"task": value}, "key": {"key": value}}
    if field == "group":
        return rows.filter(owes=job_id)
    if field:
        return rows.filter(**conditions[field])
    everything = everything.order_by()
    for condition in conditions.values():
        if everything.filter(**condition).exists():
            return rows.filter(**condition)
    return rows.none()
