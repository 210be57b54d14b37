"""The task events of jobs that share a message.

Celery's parent process tells monitors such as Flower of each message, and of the jobs in a shared one it knows no more
than their ids. So the child tells of each that it was received, has started, and how it ended. Successes travel in one
message (``task.multi``, as Celery's own do) when all have run, or after a second, when one of them takes long. Other
ends are told at once: a retry's next run may be told elsewhere soon, and monitors believe what they hear last.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery
from celery.events import Event, get_exchange
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from kombu import Producer
from kombu.utils.encoding import safe_repr

from reliable_jobs.dispatch.connection import within
from reliable_jobs.errors import JobExpired, NotRecorded
from reliable_jobs.logs import job_logger
from reliable_jobs.status import CLOSES

logger = job_logger(__name__)

#: Where a request says that its worker's monitors hear of tasks: the clock of its parent process's events.
TOLD = "reliable_task_events"
#: The fields that monitors read in an event which closes a delivery that Celery would leave open.
_CLOSING: dict[str, dict[str, Any]] = {
    "task-succeeded": {"result": "None", "runtime": 0.0},
    "task-failed": {"exception": "", "traceback": ""},
    "task-retried": {"exception": "", "traceback": ""},
    "task-revoked": {"terminated": False, "signum": None, "expired": False},
    "task-rejected": {"requeue": False},
}
#: Seconds that each wait for the broker may take, and that a job waits for its events.
_PATIENCE = 1.0
#: Messages with events that wait for a broker; later ones are not told.
_MOST_MESSAGES = 100


def closing(error: BaseException) -> tuple[str, dict[str, Any]] | None:
    """Kind and fields of the event that ends a delivery which Celery would end otherwise, or not at all; None where
    Celery's own event says what happened."""
    if isinstance(error, JobExpired):
        return "task-revoked", {**_CLOSING["task-revoked"], "expired": True}
    if not isinstance(error, Ignore):
        return None
    kind = getattr(error, CLOSES, "task-succeeded")
    fields = dict(_CLOSING[kind])
    if "exception" in fields:
        fields["exception"] = str(error)
    return kind, fields


class TaskEvents:
    """What is to be told of the jobs of one message. No event is worth a job: nothing is raised, and no wait is long.

    Args:
        hostname: the worker's name.
        clock: of its parent process. Monitors order events by it, and a child's own stands still from its fork on.
    """

    def __init__(self, app: Celery, hostname: str, clock: int) -> None:
        self.app, self.hostname = app, hostname
        app.clock.adjust(clock)
        self._untold: collections.deque[dict[str, Any]] = collections.deque()

    def starts(self, headers: Mapping[str, Any]) -> None:
        """A job's function is about to begin.

        Args:
            headers: of its message.
        """
        said = {name: headers.get(name) for name in ("root_id", "parent_id", "eta", "expires")}
        said |= {"name": headers["task"], "args": headers.get("argsrepr"), "kwargs": headers.get("kwargsrepr")}
        self._note("task-received", headers["id"], {**said, "retries": headers.get("retries") or 0})
        self._note("task-started", headers["id"], {})

    def ended(self, job_id: str, answer: Any) -> None:
        """The tracer has answered for a job."""
        if answer.info is None:
            self._note("task-succeeded", job_id, {"result": answer.retstr, "runtime": answer.runtime})
            return
        error = answer.info.retval
        if isinstance(error, (Reject, NotRecorded)):
            self._note("task-rejected", job_id, {"requeue": isinstance(error, NotRecorded) or error.requeue})
        elif (end := closing(error)) is not None:
            self._note(end[0], job_id, end[1])
        else:
            kind, shown = ("task-retried", error.exc) if isinstance(error, Retry) else ("task-failed", error)
            self._note(kind, job_id, {"exception": safe_repr(shown), "traceback": str(answer.retval.traceback)})
        self.tell()

    def _note(self, kind: str, job_id: str, fields: Mapping[str, Any]) -> None:
        origin = {
            "hostname": self.hostname,
            "pid": os.getpid(),
            "utcoffset": -time.localtime().tm_gmtoff / 3600,  # hours to the west, as Celery has it
            "clock": self.app.clock.forward(),
        }
        self._untold.append(Event(kind, uuid=job_id, **origin, **fields))

    def tell(self) -> None:
        """Publish what has not been published."""
        events = []
        while True:
            try:
                events.append(self._untold.popleft())
            except IndexError:  # another thread tells the rest
                break
        if not events:
            return
        try:
            _teller(self.app).hand_over(events, self.hostname)
        except RuntimeError as error:  # no room for another thread
            logger.info("Monitors were not told of %d task events: %s", len(events), error)


class _Teller(threading.Thread):
    """Publishes the events of one process. The caller waits up to a second, because the process may end after its
    message. It does not wait while earlier events hang: a silent broker holds up no job."""

    def __init__(self, app: Celery) -> None:
        super().__init__(name="reliable_jobs-events", daemon=True)
        self.app, self.pid = app, os.getpid()
        self._handed_over: queue.Queue[tuple[list[dict[str, Any]], str, threading.Event]] = queue.Queue(_MOST_MESSAGES)
        self._free = threading.Event()
        self._free.set()
        self._producer: Producer | None = None

    def hand_over(self, events: list[dict[str, Any]], hostname: str) -> None:
        is_free, told = self._free.is_set(), threading.Event()
        try:
            self._handed_over.put_nowait((events, hostname, told))
        except queue.Full:
            logger.info("Monitors were not told of %d task events: the broker does not take them.", len(events))
            return
        if is_free:
            # A soft time limit is meant for a function, and those have returned.
            with contextlib.suppress(SoftTimeLimitExceeded):
                told.wait(_PATIENCE)

    def run(self) -> None:
        while True:
            events, hostname, told = self._handed_over.get()
            self._free.clear()
            try:
                self._publish(events, hostname)
            except Exception as error:  # the broker's, in all the kinds of its transports
                logger.info("Monitors were not told of %d task events: %r", len(events), error)
                self._drop()
            told.set()
            self._free.set()

    def _publish(self, events: list[dict[str, Any]], hostname: str) -> None:
        if self._producer is None:
            connection = self.app.connection_for_write(heartbeat=0, connect_timeout=_PATIENCE)
            options = connection.transport_options or {}
            connection.transport_options = within(_PATIENCE, connection.transport, options)
            # Left to itself, kombu would try for as long as a connection may take, while the next events wait.
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_PATIENCE)
            self._producer = Producer(connection)
        exchange = get_exchange(self._producer.connection, name=self.app.conf.event_exchange)
        self._producer.publish(
            events,
            exchange=exchange,
            routing_key="task.multi",
            declare=[exchange],
            serializer=self.app.conf.event_serializer,
            headers={"hostname": hostname},
            delivery_mode="transient",
        )

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(Exception):  # whatever a broken connection raises
                producer.connection.collect(socket_timeout=0.1)


_tellers: dict[int, _Teller] = {}
_lock = threading.Lock()


def _teller(app: Celery) -> _Teller:
    """This process's, for an app."""
    with _lock:
        found = _tellers.get(id(app))
        if found is None or found.app is not app or found.pid != os.getpid():
            found = _Teller(app)
            found.start()
            _tellers[id(app)] = found
        return found


def _new_lock_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock_after_fork)
