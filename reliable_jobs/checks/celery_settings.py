"""RELIABLE_JOBS and Celery's settings."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured

from reliable_jobs.checks import broker
from reliable_jobs.checks.loading import reliable_tasks
from reliable_jobs.compat.celery import configured_app
from reliable_jobs.compat.celery_pool import pool_named
from reliable_jobs.conf import load
from reliable_jobs.run import pools

TAG = "reliable_jobs"
LARGEST_PREFETCH = 100
_PICKLE = ("pickle", "application/x-python-serialize")


@register(TAG)
def check_reliable_jobs(**kwargs: Any) -> list[CheckMessage]:
    try:
        load()
    except ImproperlyConfigured as error:
        return [Error(str(error), hint="Correct the RELIABLE_JOBS setting.", id="reliable_jobs.E001")]
    return []


@register(TAG)
def check_celery(**kwargs: Any) -> list[CheckMessage]:
    app = configured_app()
    if app is None:
        return [
            Warning(
                "No Celery app is loaded, so tasks use Celery's fallback: a broker on localhost, no result backend.",
                hint="Create the app in celery.py next to the settings and import it in that package's __init__.py: "
                "from .celery import app as celery_app.",
                id="reliable_jobs.W001",
            )
        ]
    found: list[CheckMessage] = []
    for check in (
        _serializers,
        broker.visibility_timeout,
        _startup_retry,
        _prefetch,
        _deduplication,
        broker.hold,
        broker.memory,
        _timezone,
    ):
        found += check(app)
    return found + _limits(app) + broker.quorum(app)


@register(TAG, deploy=True)
def check_celery_in_production(**kwargs: Any) -> list[CheckMessage]:
    app = configured_app()
    found: list[CheckMessage] = []
    if app is not None:
        found += _eager(app) + broker.redis(app) + broker.channel_errors(app)
    if os.environ.get("C_FORCE_ROOT"):
        found.append(
            Warning(
                "C_FORCE_ROOT is set: workers may run as root, and with them every task's code.",
                hint="Run the workers as a user of their own and unset C_FORCE_ROOT.",
                id="reliable_jobs.W011",
            )
        )
    return found


def _serializers(app: Celery) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    conf = app.conf
    if conf.task_serializer in _PICKLE:
        found.append(
            Error(
                "task_serializer is pickle; reliable tasks refuse it, so every enqueue would fail.",
                hint="Remove the setting (JSON is the default), or use msgpack or yaml.",
                id="reliable_jobs.E002",
            )
        )
    names = ("accept_content", "result_accept_content", "event_serializer", "result_serializer")
    for name in names:
        value = getattr(conf, name)
        if any(item in _PICKLE for item in ([value] if isinstance(value, str) else value or ())):
            found.append(
                Warning(
                    f"{name} allows pickle: whoever can write to the broker or the result backend can run any code "
                    "in the workers.",
                    hint=f"Remove pickle from {name}; JSON is the default.",
                    id="reliable_jobs.W002",
                )
            )
    return found


def _eager(app: Celery) -> list[CheckMessage]:
    if not app.conf.task_always_eager or settings.DEBUG:
        return []
    return [
        Warning(
            "task_always_eager is on: tasks run at once in the web process, without a row, and are lost with it.",
            hint="Remove the setting outside of tests and development.",
            id="reliable_jobs.W003",
        )
    ]


def _startup_retry(app: Celery) -> list[CheckMessage]:
    at_start = app.conf.broker_connection_retry_on_startup
    if at_start or (at_start is None and app.conf.broker_connection_retry):
        return []
    return [
        Warning(
            "Workers give up when the broker can't be reached as they start, e.g. after a power cut.",
            hint="Set broker_connection_retry_on_startup = True.",
            id="reliable_jobs.W007",
        )
    ]


def _prefetch(app: Celery) -> list[CheckMessage]:
    multiplier = app.conf.worker_prefetch_multiplier
    if multiplier and multiplier <= LARGEST_PREFETCH:
        return []
    return [
        Warning(
            f"worker_prefetch_multiplier is {multiplier}{'' if multiplier else ' (no limit)'}: one worker keeps "
            "hundreds of messages to itself while others idle, and they all come back at once when it dies.",
            hint="Use 1 for jobs that take longer than a moment, at most 10 or so for very short ones.",
            id="reliable_jobs.W008",
        )
    ]


def _deduplication(app: Celery) -> list[CheckMessage]:
    if not app.conf.worker_deduplicate_successful_tasks:
        return []
    return [
        Warning(
            "worker_deduplicate_successful_tasks is on: it asks the result backend, not the job's row, so it may "
            "swallow a job that a person has requeued, and it costs a query per redelivery.",
            hint="Remove the setting; a reliable task is not run twice in any case.",
            id="reliable_jobs.W009",
        )
    ]


def _timezone(app: Celery) -> list[CheckMessage]:
    if settings.USE_TZ or settings.TIME_ZONE == "UTC":
        return []
    return [
        Warning(
            f"USE_TZ is False, so django.utils.timezone.now() is local ({settings.TIME_ZONE}), but Celery takes a "
            "naive eta or expires for UTC, whatever CELERY_TIMEZONE is: jobs start, or expire, hours too early or too "
            "late.",
            hint="Pass countdown=, or a time with its zone: datetime.now(timezone.utc) + … Then silence this check.",
            id="reliable_jobs.W017",
        )
    ]


def _limits(app: Celery) -> list[CheckMessage]:
    try:
        unenforced = pools.without_limits(pool_named(app.conf.worker_pool), app, reliable_tasks(app))
    except Exception:  # a pool or task that no worker would start with: E003 says so
        return []
    found: list[CheckMessage] = []
    for limit, names in unenforced.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        found.append(
            Warning(
                f"worker_pool is {app.conf.worker_pool}, which does not enforce {limit}: a function that hangs keeps "
                f"its slot for ever: {', '.join(sorted(names)[:5])}{more}.",
                hint="Run these tasks in a prefork worker (gevent enforces time_limit where the function yields), or "
                "give each call that can hang a timeout of its own and remove the limit.",
                id="reliable_jobs.W014",
            )
        )
    return found
