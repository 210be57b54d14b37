"""Two views without a login, for machines: they name no task and no queue, and ask no broker.

`here` is for a load balancer, of the process that answers; `site` for a monitor, of the site as a whole. A load
balancer that asked the latter would take all web processes away because jobs are late.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.db import Error as DatabaseError
from django.db import router
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from reliable_jobs import databases
from reliable_jobs.health.waiting import oldest_due, unswept_for
from reliable_jobs.models import Job


@never_cache
@require_safe
def here(request: HttpRequest) -> JsonResponse:
    """Whether this process can write jobs: status 200, or 503 where the database with the jobs can't be asked."""
    try:
        Job.objects.using(router.db_for_write(Job)).order_by().values_list("pk")[:1].exists()
    except DatabaseError as error:
        return _answer(503, {"database": type(error).__name__})
    return _answer(200, {})


@never_cache
@require_safe
def site(request: HttpRequest) -> JsonResponse:
    """How long jobs wait: status 200, or 503 where no sweeper publishes them or a database can't be asked.

    ``oldest_seconds``: since the oldest waiting job of all databases became due; null when none is.
    """
    try:
        aliases = databases.aliases()
        oldest = max((age for age in map(oldest_due, aliases) if age is not None), default=None)
        unswept = max((age for age in map(unswept_for, aliases) if age is not None), default=None)
    except DatabaseError as error:
        return _answer(503, {"database": type(error).__name__})
    found = {"oldest_seconds": oldest, "unswept_seconds": unswept}
    return _answer(200 if unswept is None else 503, found)


def _answer(status: int, found: Mapping[str, object]) -> JsonResponse:
    return JsonResponse({"status": "ok" if status == 200 else "failing", **found}, status=status)
