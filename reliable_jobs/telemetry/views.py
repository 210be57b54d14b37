"""The page that Prometheus scrapes. It names tasks, queues and classes of exceptions, so it is not for everybody."""

from __future__ import annotations

from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from reliable_jobs.conf import settings

WHO = "Send RELIABLE_JOBS['METRICS_TOKEN'] as `Authorization: Bearer TOKEN`, or log in as a user who may view jobs.\n"
MISSING = "Metrics need prometheus-client: pip install 'reliable-jobs[prometheus]'.\n"


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """The site's gauges in Prometheus's text format: status 200; 401 without permission, 501 where prometheus-client is
    missing, 503 where a database can't be asked."""
    try:
        if not _may(request):
            return _plain(WHO, 401, {"WWW-Authenticate": "Bearer"})
    except DatabaseError as error:  # it holds the session and the user
        return _away(error)
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        from reliable_jobs.telemetry.fleet import Fleet
    except ImportError:
        return _plain(MISSING, 501)
    registry = CollectorRegistry()
    try:
        registry.register(Fleet())
        text = generate_latest(registry)
    except DatabaseError as error:
        return _away(error)
    return HttpResponse(text, content_type=CONTENT_TYPE_LATEST)


def _may(request: HttpRequest) -> bool:
    given = request.headers.get("Authorization", "")
    if settings.METRICS_TOKEN and constant_time_compare(given, f"Bearer {settings.METRICS_TOKEN}"):
        return True
    user = getattr(request, "user", None)
    return user is not None and user.is_active and user.has_perm("reliable_jobs.view_job")


def _away(error: DatabaseError) -> HttpResponse:
    return _plain(f"{type(error).__name__}: a database can't be asked.\n", 503)


def _plain(text: str, status: int, headers: dict[str, str] | None = None) -> HttpResponse:
    return HttpResponse(text, status=status, content_type="text/plain; charset=utf-8", headers=headers)
