"""The list at a flat cost: no query of it grows with the table.

It shows the newest :data:`BOUND` jobs of what was asked for, and counts no further. Every filter's condition repeats
that of an index of models.py, a search looks for exact values, and nothing else can be asked for: no ``?o=``, no
facets, no field lookups in the address (which would also let a viewer guess at hidden arguments).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest
from django.utils.functional import cached_property

from reliable_jobs.admin.story import holders
from reliable_jobs.clock import Now
from reliable_jobs.message.row_to_message import as_uuid, foreign_id
from reliable_jobs.models import Job
from reliable_jobs.status import Reason, Status

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

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
        return int(rows.order_by()[: BOUND + 1].count())

    @cached_property
    def count(self) -> int:
        return min(self._counted, BOUND)

    @property
    def more(self) -> bool:
        """Whether there are jobs beyond those that are counted."""
        return self._counted > BOUND


class JobChangeList(_ChangeList):
    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        rows = super().get_queryset(request, *args, **kwargs)
        return rows.defer(*HEAVY).annotate(now=Now(), error_start=Left("error", 200))

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        # Without the primary key that Django adds: 100,000 jobs of one bulk insert have one time, and sorting them by
        # id took 90 ms where the index alone takes 0.1. Among equals the index's own order is as good.
        return ["-created_at"]

    def get_ordering_field_columns(self) -> dict[int, Any]:
        return {}

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        # Where everything fits on one page Django asks without a LIMIT.
        self.result_list = list(self.result_list if self.multi_page else self.queryset[: self.list_per_page])
        waiting = [job.pk for job in self.result_list if job.status == Status.WAITING]
        held = holders(waiting, self.root_queryset.db)
        for job in self.result_list:
            job.held = held.get(job.pk)


def _crashed(rows: QuerySet[Any]) -> QuerySet[Any]:
    # A run with a committed claim counts its start as a crash until it reports; that one is alive.
    return rows.filter(crashes__gt=0).exclude(status=Status.RUNNING, crashes=1)


#: Word for word the conditions of the partial indexes of models.py, or equality on the first column of an index.
SHOW: dict[str, Callable[[QuerySet[Any]], QuerySet[Any]]] = {
    "failed": lambda rows: rows.filter(status=Status.FAILED),
    "waiting": lambda rows: rows.filter(status=Status.WAITING),
    "running": lambda rows: rows.filter(status=Status.RUNNING),
    "requeued": lambda rows: rows.filter(requeues__gt=0),
    "crashed": _crashed,
    "parked": lambda rows: rows.filter(reason=Reason.PARKED),
    "succeeded": lambda rows: rows.filter(status=Status.SUCCEEDED),
    "cancelled": lambda rows: rows.filter(status=Status.CANCELLED),
    "expired": lambda rows: rows.filter(status=Status.EXPIRED),
}

CREATED = {
    "hour": ("past hour", datetime.timedelta(hours=1)),
    "day": ("past 24 hours", datetime.timedelta(days=1)),
    "week": ("past 7 days", datetime.timedelta(days=7)),
}


class ShowFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "show"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, str]]:
        return [(name, name) for name in SHOW]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        condition = SHOW.get(self.value() or "")
        return queryset if condition is None else condition(queryset)


class CreatedFilter(admin.SimpleListFilter):
    title = "created"
    parameter_name = "created"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin[Any]) -> list[tuple[str, str]]:
        return [(name, label) for name, (label, _) in CREATED.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = CREATED.get(self.value() or "")
        return queryset if chosen is None else queryset.filter(created_at__gte=Now() - chosen[1])


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
    prefix, _, rest = term.partition(":")
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
