"""Celery's settings against the broker: what its kind confirms, keeps and delivers again."""

from __future__ import annotations

from celery import Celery
from django.core.checks import CheckMessage, Warning
from kombu import Queue

from reliable_jobs.checks.loading import our_settings, reliable_tasks

#: RabbitMQ closes a channel whose consumer has not acked for this long, in seconds (its default).
CONSUMER_TIMEOUT = 1800.0
#: Seconds after which an unacked message is delivered again, where the transport's options do not say.
VISIBILITY = {"redis": 3600.0, "rediss": 3600.0, "sentinel": 3600.0, "sqs": 1800.0}


def _transport(app: Celery) -> str:
    """The broker's kind: "amqp", "redis" … Read off the URL, because kombu's own object wants the driver installed."""
    conf = app.conf
    url = conf.broker_read_url or conf.broker_url or "amqp://"
    first = url if isinstance(url, str) else next(iter(url), "amqp://")
    scheme = first.partition("://")[0] if "://" in first else ""
    return str(conf.broker_transport or scheme or "amqp").partition("+")[0]


def visibility_timeout(app: Celery) -> list[CheckMessage]:
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


def redis(app: Celery) -> list[CheckMessage]:
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


def memory(app: Celery) -> list[CheckMessage]:
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


def channel_errors(app: Celery) -> list[CheckMessage]:
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


def hold(app: Celery) -> list[CheckMessage]:
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


def quorum(app: Celery) -> list[CheckMessage]:
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
