"""What is done to one job alone: run it again with other arguments, stop its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import current_app
from django import forms
from django.contrib import messages
from django.contrib.admin.models import ADDITION, CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from reliable_jobs import lifecycle
from reliable_jobs.admin import content
from reliable_jobs.admin.views import OperationViews, no_job
from reliable_jobs.compat.django_admin import key_in_address
from reliable_jobs.dispatch import remote
from reliable_jobs.models import Job
from reliable_jobs.status import EventKind, Status
from reliable_jobs.translatable import COPIED_AS, COPY_OF, STOP_ASKED

if TYPE_CHECKING:
    _JobAdmin = OperationViews
else:
    _JobAdmin = object


class _JSONField(forms.JSONField):
    """Also what Python's own limits refuse is an error of the form: numbers of thousands of digits, deep nesting."""

    def to_python(self, value: Any) -> Any:
        try:
            return super().to_python(value)
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError(
                gettext("It can't be read: a number is too long, or it is too deep.")
            ) from error

    def bound_data(self, data: Any, initial: Any) -> Any:
        try:
            return super().bound_data(data, initial)
        except (ValueError, RecursionError):
            return initial


class ArgumentsForm(forms.Form):
    """The arguments as JSON; refused where they don't fit the task function."""

    args = _JSONField(required=False, label=_("Positional arguments"), help_text=_('A list: [17, "Ada"]'))
    kwargs = _JSONField(required=False, label=_("Keyword arguments"), help_text=_('An object: {"urgent": true}'))

    def __init__(self, task: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task = task
        for field in self.fields.values():
            field.widget.attrs.update(rows=6, spellcheck="false", **{"class": "vLargeTextField rj-json"})

    def clean_args(self) -> list[Any]:
        value = self.cleaned_data["args"]
        if value is None:
            return []
        if not isinstance(value, list):
            raise forms.ValidationError(gettext("Write a list, such as [17]."))
        return value

    def clean_kwargs(self) -> dict[str, Any]:
        value = self.cleaned_data["kwargs"]
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise forms.ValidationError(gettext('Write an object, such as {"urgent": true}.'))
        return value

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or {}
        if not self.errors and (why := self.task.misfit(given["args"], given["kwargs"])):
            raise forms.ValidationError(
                gettext("They don't fit %(task)s: %(why)s") % {"task": self.task.name, "why": why}
            )
        return given


class OneJobViews(_JobAdmin):
    """The part of JobAdmin that acts on one job alone."""

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        own = [
            path(f"<path:object_id>/{verb}/", self.admin_site.admin_view(view), name=f"{name}_{verb}")
            for verb, view in (("rerun", self.rerun_view), ("stop", self.stop_view))
        ]
        return own + super().get_urls()

    def has_rerun_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "rerun")

    def has_stop_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "stop")

    def rerun_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """GET shows the arguments, POST enqueues a new job with those that were written."""
        if not self.has_rerun_permission(request):
            raise PermissionDenied
        job = self._job(request, object_id)
        if isinstance(job, HttpResponse):
            return job
        task = content.reliable_task(job)
        if task is None:
            text = gettext("This process does not know the reliable task '%(task)s'.") % {"task": job.task}
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self._page("change", job.pk))
        given = content.editable_arguments(job)
        form = ArgumentsForm(task, request.POST if request.method == "POST" else None, initial=given or {})
        if form.is_bound and form.is_valid():
            new = self._enqueue(request, job, task, form.cleaned_data)
            link = format_html('<a href="{}">{}</a>', self._page("change", new), str(new))
            self.message_user(
                request, format_html(gettext("Enqueued as a new job, {link}. This one stays as it is."), link=link)
            )
            return HttpResponseRedirect(self._page("change", new))
        text = gettext("Enqueues a new job in queue '%(queue)s'; this one stays as it is.") % {"queue": job.queue}
        if given is None:
            text += " " + gettext("The arguments of this job are hidden, or can't be written as JSON.")
        return self._ask(
            request,
            job,
            title=gettext("Run %(task)s again with other arguments") % {"task": job.task},
            explanation=text,
            button=gettext("Enqueue a new job"),
            form=form,
        )

    def _enqueue(self, request: HttpRequest, job: Job, task: Any, given: dict[str, Any]) -> Any:
        user: Any = request.user
        using = job._state.db or "default"
        with transaction.atomic(using=using):
            result = task.apply_async(
                given["args"], given["kwargs"], queue=job.queue, priority=job.priority, using=using
            )
            new = Job.objects.using(using).only("task", "queue").get(pk=result.id)
            actor = user.get_username()
            lifecycle.record(new, using, EventKind.COPY, actor, COPY_OF % {"id": job.pk})
            lifecycle.record(job, using, EventKind.COPY, actor, COPIED_AS % {"id": new.pk})
        LogEntry.objects.log_actions(user.pk, [new], ADDITION, f"Run again with other arguments, as {job.pk}.")
        return new.pk

    def stop_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """GET asks, POST has the worker end the run."""
        if not self.has_stop_permission(request):
            raise PermissionDenied
        job = self._job(request, object_id)
        if isinstance(job, HttpResponse):
            return job
        back = HttpResponseRedirect(self._page("change", job.pk))
        if job.is_final or job.status == Status.SENT:
            self.message_user(
                request, gettext("It has ended: %(status)s.") % {"status": job.get_status_display()}, messages.WARNING
            )
            return back
        if request.method == "POST":
            user: Any = request.user
            try:
                remote.terminate(current_app, [job.pk])
            except Exception as error:  # of the broker; whatever it is, the person reads it
                self.message_user(
                    request,
                    gettext("Not stopped: %(error)s") % {"error": str(error) or type(error).__name__},
                    messages.ERROR,
                )
                return back
            lifecycle.record(job, job._state.db or "default", EventKind.STOP, user.get_username(), STOP_ASKED)
            LogEntry.objects.log_actions(user.pk, [job], CHANGE, "Asked the workers to stop its run.")
            self.message_user(
                request, gettext("The workers are asked to stop it. The job ends cancelled when its process has.")
            )
            return back
        return self._ask(
            request,
            job,
            title=gettext("Stop %(job)s") % {"job": job},
            explanation=gettext(
                "The worker that runs it ends the process that does, and the job ends cancelled; what an atomic task "
                "has written is rolled back. Only prefork workers can do that: in other pools the run goes on. What "
                "does not run yet is cancelled when a worker meets it."
            ),
            button=gettext("Stop it"),
        )

    def _job(self, request: HttpRequest, object_id: str) -> Job | HttpResponse:
        job = self.get_object(request, key_in_address(object_id))
        if job is None:
            self.message_user(request, no_job(object_id), messages.WARNING)
            return HttpResponseRedirect(self._page("changelist"))
        return job

    def _ask(
        self, request: HttpRequest, job: Job, *, title: str, explanation: str, button: str, form: Any = None
    ) -> HttpResponse:
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "media": self.media,
            "job": job,
            "explanation": explanation,
            "button": button,
            "form": form,
        }
        return TemplateResponse(request, "admin/reliable_jobs/job/one_job.html", context)
