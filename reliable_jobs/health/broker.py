"""Whether the broker takes messages, and who consumes the queues in which jobs wait."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

from celery import Celery

from reliable_jobs.dispatch.answers import Depth
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.health.finding import Finding, Severity

logger = logging.getLogger(__name__)

#: Seconds for each question.
TIMEOUT = 5.0
#: Seconds that RabbitMQ is given to say that it is blocked.
ALARM_SAID_WITHIN = 1.0


def findings(app: Celery, waiting: Mapping[str, int]) -> Iterator[Finding]:
    """
    Args:
        waiting: by queue, the jobs that are due.
    """
    where = app.connection_for_write().as_uri()
    if not publisher(app).reachable(TIMEOUT):
        if _blocked(app):
            yield Finding(
                Severity.ERROR,
                "broker",
                f"{where} accepts connections and takes no message: it is blocked by an alarm.",
                "Free memory or disk of the broker's machine; rabbitmq-diagnostics alarms says which.",
            )
        else:
            yield Finding(
                Severity.ERROR,
                "broker",
                f"{where} confirmed no message within {TIMEOUT:g} s. Jobs are written and wait.",
                "Start the broker, or correct the URL, user, virtual host or network on the way to it.",
            )
        return
    yield Finding(Severity.INFO, "broker", f"{where} takes messages.")
    usual = str(app.conf.task_default_queue)
    names = sorted({*waiting, usual, *(queue.name for queue in app.conf.task_queues or ())})
    depths = publisher(app).depths(names, timeout=TIMEOUT)
    for name in names:
        yield from _queue(name, waiting.get(name, 0), depths.get(name))


def _queue(name: str, due: int, depth: Depth | None) -> Iterator[Finding]:
    area = f"queue {name!r}"
    if depth is None:
        yield Finding(
            Severity.WARNING,
            area,
            "The broker did not say who consumes it.",
            "On another broker than RabbitMQ ask the workers: celery inspect active_queues.",
        )
    elif depth.exists and depth.consumers:
        said = f"{depth.consumers} consumer(s), {depth.ready} message(s) ready, {due} job(s) due."
        yield Finding(Severity.INFO, area, said)
    elif due:
        missing = "no worker consumes it" if depth.exists else "there is no such queue"
        yield Finding(Severity.ERROR, area, f"{due} job(s) are due, and {missing}.", f"Start a worker with -Q {name}.")
    else:
        yield Finding(
            Severity.WARNING,
            area,
            "No worker consumes it; no job waits there now.",
            f"Start a worker with -Q {name}, unless nothing is ever sent there.",
        )


def _blocked(app: Celery) -> bool:
    """Whether RabbitMQ says that it blocks those who publish. It does when something is published: here a message for
    no queue."""
    said: list[str] = []
    connection = app.connection_for_write(heartbeat=0, connect_timeout=TIMEOUT)
    if connection.transport.driver_type != "amqp":
        return False
    connection.transport_options = {**(connection.transport_options or {}), "on_blocked": said.append}
    try:
        channel = connection.channel()
        producer = connection.Producer(channel, auto_declare=False)
        producer.publish("probe", exchange="", routing_key="reliable_jobs.probe", retry=False)
        deadline = time.monotonic() + ALARM_SAID_WITHIN
        while not said and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
    except Exception as error:
        logger.info("The broker could not be asked whether it is blocked: %s", error)
    finally:
        connection.collect(socket_timeout=0.1)  # a broker that is blocked never answers a close()
    return bool(said)
