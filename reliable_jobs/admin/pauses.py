"""Queues and tasks that are paused: pause one, resume it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery import current_app
from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from reliable_jobs import lifecycle
from reliable_jobs.models import Job, Pause, PauseKind

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Pause]
    _ModelForm = forms.ModelForm[Pause]
else:
    _ModelAdmin, _ModelForm = admin.ModelAdmin, forms.ModelForm


class PauseForm(_ModelForm):
    class Meta:
        model = Pause
        fields = ("kind", "name", "why")
        help_texts = {
            "name": _("The name of the queue, or of the task. No job of it starts from now on; those that run go on."),
            "why": _("For whoever finds it."),
        }

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"]).strip()
        if self.cleaned_data.get("kind") == PauseKind.TASK and name not in current_app.tasks:
            raise ValidationError(
                gettext("This process knows no task '%(name)s'. Write its whole name, such as shop.tasks.ship.")
                % {"name": name}
            )
        return name


@admin.register(Pause)
class PauseAdmin(_ModelAdmin):
    """To add a row pauses, to delete it resumes."""

    form = PauseForm
    list_display = ("kind", "name", "why", "actor", "at")
    list_display_links = None
    ordering = ("-at",)
    show_full_result_count = False
    sortable_by = ()
    actions = ("resume",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Pause]:
        return super().get_queryset(request).using(router.db_for_write(Job))

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        user: Any = request.user
        return bool(user.has_perm("reliable_jobs.view_job"))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        user: Any = request.user
        return self.has_view_permission(request) and bool(user.has_perm("reliable_jobs.pause_job"))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_add_permission(request)

    def save_model(self, request: HttpRequest, obj: Pause, form: Any, change: bool) -> None:
        user: Any = request.user
        made = lifecycle.pause(obj.kind, obj.name, router.db_for_write(Job), actor=user.get_username(), why=obj.why)
        obj.pk = made.pk

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Pause]) -> None:
        for pause in queryset:
            self.delete_model(request, pause)

    def delete_model(self, request: HttpRequest, obj: Pause) -> None:
        lifecycle.resume(obj.kind, obj.name, obj._state.db or router.db_for_write(Job))

    @admin.action(description=_("Resume selected queues and tasks"), permissions=["delete"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Pause]) -> None:
        resumed: Sequence[Pause] = list(queryset)
        for pause in resumed:
            self.log_deletions(request, queryset.filter(pk=pause.pk))
            self.delete_model(request, pause)
        named = ", ".join(str(pause) for pause in resumed)
        text = gettext("Resumed: %(names)s. The sweeper sends what is due.") % {"names": named}
        self.message_user(request, text, messages.SUCCESS)
