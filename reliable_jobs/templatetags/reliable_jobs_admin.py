"""What the app's landing page in the admin shows, for its template."""

from __future__ import annotations

from typing import Any

from django import template
from django.db import router

from reliable_jobs.admin import charts, overview
from reliable_jobs.models import Job

register = template.Library()


@register.inclusion_tag("admin/reliable_jobs/overview.html", takes_context=True)
def reliable_jobs_overview(context: dict[str, Any]) -> dict[str, Any]:
    """The overview, for whoever may view jobs; nothing for others."""
    request = context["request"]
    if not request.user.has_perm("reliable_jobs.view_job"):
        return {}
    return {
        "overview": overview.look(router.db_for_write(Job), request.GET.get("period", "")),
        "periods": charts.PERIODS,
        "may_requeue": request.user.has_perm("reliable_jobs.requeue_job"),
        "may_pause": request.user.has_perm("reliable_jobs.pause_job"),
    }
