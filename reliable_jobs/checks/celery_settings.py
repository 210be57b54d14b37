"""RELIABLE_JOBS, Celery's settings and the broker."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router
from kombu import Queue

from reliable_jobs.checks.loading import our_settings, reliable_tasks
from reliable_jobs.compat.celery import configured_app
from reliable_jobs.compat.celery_pool import pool_named
from reliable_jobs.conf import load
from reliable_jobs.models import Job
from reliable_jobs.run import pools
from reliable_jobs.schedule import PRUNE_TASK, SWEEP_TASK

TAG = "reliable_jobs"
#: RabbitMQ closes a channel whose consumer has not acked for this long, in seconds (its default).
CONSUMER_TIMEOUT = 1800.0
#: Seconds after which an unacked message is delivered again, where the transport's options do not say.
VISIBILITY = {"redis": 3600.0, "rediss": 3600.0, "sentinel": 3600.0, "sqs": 1800.0}
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
        _visibility_timeout,
        _startup_retry,
        _prefetch,
        _deduplication,
        _hold,
        _memory,
        _timezone,
    ):
        found += check(app)
    return found + _limits(app) + _quorum(app)


@register(TAG, deploy=True)
def check_celery_in_production(**kwargs: Any) -> list[CheckMessage]:
    app = configured_app()
    found: list[CheckMessage] = []
    if app is not None:
        found += _eager(app) + _redis(app) + _channel_errors(app)
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


def _transport(app: Celery) -> str:
    """The broker's kind: "amqp", "redis" … Read off the URL, because kombu's own object wants the driver installed."""
    conf = app.conf
    url = conf.broker_read_url or conf.broker_url or "amqp://"
    first = url if isinstance(url, str) else next(iter(url), "amqp://")
    scheme = first.partition("://")[0] if "://" in first else ""
    return str(conf.broker_transport or scheme or "amqp").partition("+")[0]


def _visibility_timeout(app: Celery) -> list[CheckMessage]:
    transport = _transport(app)
    if transport not in VISIBILITY:
        return []
    options = app.conf.broker_transport_options or {}
    visible = float(options.get("visibility_timeout") or VISIBILITY[transport])
    limits = {f"the time_limit of {task.name}": float(task.time_limit or 0) for task in reliable_tasks(app)}
    limits["task_time_limit"] = float(app.conf.task_time_limit or 0)
    ours = our_settings()
    limits["RELIABLE_JOBS['HOLD']"] = float(ours.HOLD) if ours else 0.0
    longest = max(limits, key=lambda name: limits[name])
    if limits[longest] < visible:
        return []
    return [
        Warning(
            f"The broker ({transport}) delivers an unacknowledged message again after visibility_timeout="
            f"{visible:g} s, but {longest} is {limits[longest]:g} s: long jobs are delivered again while they run. The "
            "copies run nothing, but each holds up a worker for some seconds.",
            hint=f"Set broker_transport_options = {{'visibility_timeout': {int(limits[longest]) + 600}}}, "
            "or lower the limit.",
            id="reliable_jobs.W004",
        )
    ]


def _redis(app: Celery) -> list[CheckMessage]:
    if not _transport(app).startswith(("redis", "sentinel")):
        return []
    return [
        Warning(
            "Redis confirms no message and loses the newest ones when it crashes or evicts. No job is lost, because "
            "the sweeper publishes again what is not settled in time, but such a job runs late.",
            hint="Use RabbitMQ with quorum queues; or on Redis set appendonly yes and maxmemory-policy noeviction, "
            "keep beat running, and silence this check.",
            id="reliable_jobs.W005",
        )
    ]


def _memory(app: Celery) -> list[CheckMessage]:
    """Named wherever checks run, not refused: test suites and development use it with eager tasks."""
    if _transport(app) != "memory" or app.conf.task_always_eager:
        return []
    return [
        Warning(
            "The broker is memory://, which lives in one process. A worker receives nothing that a web process or beat "
            "publishes; their sweepers count such a message as sent, so its job may wait for ever.",
            hint="Use a broker that all processes reach, such as RabbitMQ or Redis. In tests, where all runs in one "
            "process, silence this check.",
            id="reliable_jobs.W015",
        )
    ]


def _channel_errors(app: Celery) -> list[CheckMessage]:
    if "amqp" not in _transport(app) or app.conf.broker_channel_error_retry:
        return []
    return [
        Warning(
            "broker_channel_error_retry is off: a channel error (a queue was deleted, an acknowledgement came after "
            "RabbitMQ's consumer_timeout) ends the whole worker.",
            hint="Set broker_channel_error_retry = True, or have a supervisor restart the workers.",
            id="reliable_jobs.W006",
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


def _hold(app: Celery) -> list[CheckMessage]:
    ours = our_settings()
    if ours is None or "amqp" not in _transport(app) or ours.HOLD < CONSUMER_TIMEOUT:
        return []
    return [
        Warning(
            f"RELIABLE_JOBS['HOLD'] is {ours.HOLD:g} s, but RabbitMQ closes the channel of a worker that has not "
            f"acknowledged for {CONSUMER_TIMEOUT:g} s (consumer_timeout).",
            hint="Keep HOLD below consumer_timeout; or raise that on the broker and silence this check.",
            id="reliable_jobs.W010",
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


def _quorum(app: Celery) -> list[CheckMessage]:
    conf = app.conf
    if "amqp" not in _transport(app) or conf.worker_detect_quorum_queues:
        return []
    names = [
        queue.name
        for queue in conf.task_queues or ()
        if isinstance(queue, Queue) and (getattr(queue, "queue_arguments", None) or {}).get("x-queue-type") == "quorum"
    ]
    if conf.task_default_queue_type == "quorum":
        names.append(conf.task_default_queue)
    if not names:
        return []
    return [
        Warning(
            f"worker_detect_quorum_queues is off, but {', '.join(names[:5])} are quorum queues: they refuse the global "
            "prefetch count that workers would set, and no worker starts.",
            hint="Remove the setting; it is on by default.",
            id="reliable_jobs.W016",
        )
    ]


# --- beat -------------------------------------------------------------------------------------------------------------


@register(TAG)
def check_beat_installed(**kwargs: Any) -> list[CheckMessage]:
    app = configured_app()
    scheduled = (app.conf.beat_schedule or {}).values() if app is not None else ()
    if apps.is_installed("django_celery_beat") or any(entry.get("task") == SWEEP_TASK for entry in scheduled):
        return []
    ours = our_settings()
    fallback = float(ours.WORKER_SWEEP_INTERVAL) if ours else 1.0
    who = (
        f"only the workers sweep, every {fallback:g} s: delayed jobs and retries start late."
        if fallback
        else "nobody sweeps, as RELIABLE_JOBS['WORKER_SWEEP_INTERVAL'] is 0: delayed jobs, retries and jobs whose "
        "message was lost are never run."
    )
    return [
        Warning(
            f"Beat has no schedule for the sweeper; {who} Nor does it delete settled jobs.",
            hint="Install reliable-jobs[beat], add django_celery_beat to INSTALLED_APPS, migrate, and run one beat: "
            f"celery -A … beat --scheduler django. Without it: schedule the tasks {SWEEP_TASK} (every second) and "
            f"{PRUNE_TASK} (every 10 minutes) in CELERY_BEAT_SCHEDULE; or run manage.py reliable_jobs_sweep, and "
            "reliable_jobs_prune from time to time, and silence this check.",
            id="reliable_jobs.W012",
        )
    ]


@register(Tags.database)
def check_beat_row(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    if not apps.is_installed("django_celery_beat"):
        return []
    from django_celery_beat.models import PeriodicTask

    alias = router.db_for_read(PeriodicTask)
    if alias not in (databases or ()):
        return []
    try:
        tables = connections[alias].introspection.table_names()
        if PeriodicTask._meta.db_table not in tables or Job._meta.db_table not in tables:
            return []  # not migrated yet; the row is made afterwards
        rows = list(PeriodicTask.objects.using(alias).filter(task=SWEEP_TASK).values_list("enabled", flat=True))
    except DatabaseError:
        return []  # a database that can't be asked is not this check's business
    if any(rows):
        return []
    return [
        Warning(
            f"The periodic task {SWEEP_TASK} is {'disabled' if rows else 'missing'}: beat does not sweep, so delayed "
            "jobs, retries and jobs whose message was lost start late.",
            hint="Enable it in the admin under Periodic tasks."
            if rows
            else "Run manage.py migrate, which makes it where it is missing.",
            id="reliable_jobs.W013",
        )
    ]
