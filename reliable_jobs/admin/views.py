"""Requeue and cancel in the browser: who may, the page that asks, and its answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from reliable_jobs.admin.listing import PARAMETERS, known_queues
from reliable_jobs.admin.operations import OPERATIONS, Chosen, Operation, carry_out
from reliable_jobs.admin.wording import jobs
from reliable_jobs.compat.django_admin import field_of_chosen, is_popup, key_in_address
from reliable_jobs.models import Job, Verb

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Job]
else:
    _ModelAdmin = admin.ModelAdmin

#: Jobs that the page which asks calls by name.
JOBS_NAMED = 10


def _action(operation: Operation) -> Callable[..., Any]:
    @admin.action(description=operation.action, permissions=[operation.permission or operation.name])
    def action(self: OperationViews, request: HttpRequest, queryset: QuerySet[Job]) -> HttpResponse | None:
        if request.POST.get("select_across") == "1":
            return self.for_all(operation, request)
        hidden = [
            ("action", operation.name),
            *((field_of_chosen(), pk) for pk in request.POST.getlist(field_of_chosen())),
        ]
        return self.operate(operation, request, Chosen.of(queryset), queryset.db, hidden=hidden)

    action.__name__ = operation.name
    return action


def no_job(object_id: str) -> str:
    """What an address of a job that is not there is answered."""
    return _("There is no job %(id)s; it may have been pruned.") % {"id": key_in_address(object_id)}


class OperationViews(_ModelAdmin):
    """The part of JobAdmin that acts."""

    actions = tuple(_action(operation) for operation in OPERATIONS.values())

    def has_requeue_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "requeue")

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "cancel")

    def _may(self, request: HttpRequest, operation: str) -> bool:
        user: Any = request.user
        return bool(user.has_perm(f"{self.opts.app_label}.{operation}_job")) and self.has_view_permission(request)

    def response_action(
        self, request: HttpRequest, queryset: QuerySet[Any], *args: Any, **kwargs: Any
    ) -> HttpResponse | None:
        # Django 6.1 passes the place of the action form too.
        try:
            return super().response_action(request, queryset, *args, **kwargs)
        except ValidationError:  # a selected id that is none
            self.message_user(request, _("No such job was selected."), messages.WARNING)
            return None

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        own = [
            path(
                f"<path:object_id>/{operation.name}/",
                self.admin_site.admin_view(functools.partial(self.operation_view, operation)),
                name=f"{name}_{operation.name}",
            )
            for operation in OPERATIONS.values()
        ]
        return own + super().get_urls()

    def for_all(self, operation: Operation, request: HttpRequest) -> HttpResponse | None:
        """Lead on to an act on all jobs that the filters choose; where there is no such act, say so."""
        if operation.name not in Verb or request.GET.get("q"):
            self.message_user(
                request,
                _(
                    "A search's finds, and workflows, are acted on page by page. For many jobs use the filters: state, "
                    "task, queue, error, times."
                ),
                messages.WARNING,
            )
            return None
        chosen = {name: request.GET[name] for name in PARAMETERS if name in request.GET}
        return HttpResponseRedirect(f"{self._page('act', operation.name)}?{urlencode(chosen)}")

    def operation_view(self, operation: Operation, request: HttpRequest, object_id: str) -> HttpResponse:
        """GET asks, POST acts."""
        if not self._may(request, operation.permission or operation.name):
            raise PermissionDenied
        job = self.get_object(request, key_in_address(object_id))
        if job is None:
            self.message_user(request, no_job(object_id), messages.WARNING)
            return HttpResponseRedirect(self._page("changelist"))
        back = self._page("change", job.pk)
        answer = self.operate(operation, request, Chosen([job]), job._state.db or "default", job=job)
        return answer or HttpResponseRedirect(back)

    def operate(
        self,
        operation: Operation,
        request: HttpRequest,
        chosen: Chosen,
        using: str,
        *,
        hidden: list[tuple[str, str]] | None = None,
        job: Job | None = None,
    ) -> HttpResponse | None:
        """The page that asks; or, when its button was pressed, None with everything done and said."""
        confirmed = request.method == "POST" and "confirmed" in request.POST
        form = operation.form(request.POST if confirmed else None)
        if confirmed and form.is_valid():
            carry_out(operation, request, chosen, using, form.cleaned_data)
            return None
        request.current_app = self.admin_site.name
        number = jobs(len(chosen.jobs))
        context = {
            **self.admin_site.each_context(request),
            "title": operation.title % {"what": job if job is not None else number},
            "button": operation.title % {"what": number},
            "opts": self.opts,
            "media": self.media + form.media,
            "operation": operation,
            "form": form,
            "number": number,
            "chosen": chosen,
            "named": chosen.jobs[:JOBS_NAMED],
            "hidden": [*(hidden or []), ("confirmed", "yes")],
            "queues": known_queues() if operation.name == "requeue" else [],
            "job": job,
            "is_popup": is_popup(request),
        }
        return TemplateResponse(request, "admin/reliable_jobs/job/operation.html", context)

    def _page(self, name: str, *args: Any) -> str:
        return reverse(
            f"admin:{self.opts.app_label}_{self.opts.model_name}_{name}", args=args, current_app=self.admin_site.name
        )
