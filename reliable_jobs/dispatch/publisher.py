"""Messages out, confirmed, within a time budget: the pool of broker connections and the breaker before it.

A connection is used by one publish at a time, never across a fork, and never again after an error: a late ack of an
earlier message would confirm the next one.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from celery import Celery
from celery.app import app_or_default
from celery.exceptions import SoftTimeLimitExceeded

from reliable_jobs import signals
from reliable_jobs.conf import settings
from reliable_jobs.dispatch import bundles, second_tries
from reliable_jobs.dispatch.answers import Confirms, Depth, is_refusal
from reliable_jobs.dispatch.connect import Preparation
from reliable_jobs.dispatch.connection import Link
from reliable_jobs.message.row_to_message import HEADER, Outgoing

logger = logging.getLogger(__name__)

#: Idle connections kept per process.
MAX_IDLE = 10
#: Seconds for which a broker that has answered a publish is trusted to answer the next one.
TRUSTED = 1.0


class Publisher:
    """Connections to one app's broker, shared by the threads of a process, and the breaker before them."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._reset()

    def _reset(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Link] = []
        self._open = False
        self._probe: threading.Thread | None = None
        #: When a probe may be started next, where one could not be (monotonic).
        self._probe_at = 0.0
        self._away = False
        #: When the broker last answered a publish, if none has failed since (monotonic).
        self._answered_at = -math.inf
        #: When the broker answered again after it had been away (monotonic); None: it has not been.
        self._back_at: float | None = None

    def _forked(self) -> None:
        # kombu's after-fork hook does not cover a raw os.fork (gunicorn's preload, uWSGI).
        if self.pid != os.getpid():
            self._reset()

    @property
    def breaker_open(self) -> bool:
        """Whether a publish failed with nothing confirmed, and no probe has succeeded since."""
        self._forked()
        if self._open:
            self._start_probe()
        return self._open

    def publish(self, messages: Sequence[Outgoing], timeout: float | None = None) -> Confirms:
        """Publish, wait for every confirm, and say what became of each message. Never raises a broker's error.

        Args:
            messages: any number; more than a window go out in windows on one connection.
            timeout: seconds for everything, connecting included; PUBLISH_TIMEOUT when omitted.
        """
        self._forked()
        deadline = time.monotonic() + (settings.PUBLISH_TIMEOUT if timeout is None else timeout)
        packed, jobs_of = (messages, {}) if len(messages) == 1 else bundles.pack(self.app, messages)
        total = self._try_once(packed, deadline, reuse=True)
        if len(total.confirmed) < len(packed):
            total = second_tries.publish(self._try_once, packed, total, deadline)
        if messages:
            self._answered_at = time.monotonic() if total.error is None else -math.inf
        if total.error is not None and not total.confirmed:
            self._trip(total.error)
        if jobs_of:
            total.unpack(jobs_of)
        if signals.heard(signals.job_published):
            _tell(message for message in messages if message.id in total.confirmed)
        return total

    def _try_once(self, messages: Sequence[Outgoing], deadline: float, reuse: bool) -> Confirms:
        if not messages:
            return Confirms()
        link, confirms = self._idle_link() if reuse else None, Confirms()
        if link is None or not link.declared.issuperset([message.queue for message in messages]):
            try:
                link, confirms = Preparation(self.app, link, messages).result(deadline - time.monotonic())
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                return Confirms(error=error)
        if confirms.error is None:
            try:
                confirms = link.publish(messages, deadline)
            except BaseException:
                # A time limit of the task function that publishes: the broker is not to blame, and what is still on
                # its way on this connection would confirm the next messages.
                link.drop()
                raise
        if confirms.error is None and not confirms.returned:
            self._keep(link)
        else:
            link.drop()
        return confirms

    def _idle_link(self) -> Link | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _keep(self, link: Link) -> None:
        with self._lock:
            keep = len(self._idle) < MAX_IDLE
            if keep:
                self._idle.append(link)
        if not keep:
            link.close()

    def reachable(self, timeout: float = 5.0) -> bool:
        """Whether the broker takes and confirms a message now; where the transport knows no confirms, whether there is
        a connection, which may be an idle one. Not for requests: it may take the whole timeout."""
        self._forked()
        answers = self._answers(timeout)
        if self._away and answers:
            self._back_at = time.monotonic()
        self._away = not answers
        return answers

    @property
    def answered_lately(self) -> bool:
        """Whether the broker has answered a publish within the last second, and failed none since."""
        self._forked()
        return time.monotonic() - self._answered_at < TRUSTED

    @property
    def back_for(self) -> float:
        """Seconds since this process saw the broker come back; endless where it never saw it away."""
        self._forked()
        return math.inf if self._back_at is None else time.monotonic() - self._back_at

    def _answers(self, timeout: float) -> bool:
        for reuse in (True, False):
            try:
                link = (self._idle_link() if reuse else None) or Link(self.app, timeout=timeout)
            except Exception:
                return False
            try:
                link.probe(timeout)
            except Exception as error:
                link.drop()
                if is_refusal(error):
                    return True  # a user who may not write to the default exchange: the broker lives
                if not link.used:
                    return False
            else:
                self._keep(link)
                return True
        return False

    def depths(self, queues: Sequence[str], timeout: float = 2.0) -> dict[str, Depth]:
        """What the broker says of queues; those of which it could not say anything within the time are left out.

        Args:
            timeout: seconds for all of them, connecting included.
        """
        self._forked()
        if self._away or not queues:
            return {}
        found: dict[str, Depth] = {}

        def look() -> None:
            for reuse in (True, False):
                link = None
                try:
                    link = (self._idle_link() if reuse else None) or Link(self.app, timeout=timeout)
                    for queue in queues:
                        depth = link.depth(queue)
                        if depth is not None:
                            found[queue] = depth
                except Exception as error:  # a kept connection may have died; a broker that is away says nothing
                    logger.info("The broker could not be asked about its queues: %s", error)
                    if link is not None:
                        link.drop()
                else:
                    self._keep(link)
                    return

        # In a thread of its own, because nothing else bounds it: see Preparation.
        thread = threading.Thread(target=look, name="reliable_jobs-depths", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no room for another thread
            return {}
        thread.join(timeout)
        return dict(found)

    def close(self) -> None:
        """Close the idle connections."""
        self._forked()
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    def _trip(self, error: Exception) -> None:
        with self._lock:
            if self._open:
                return
            self._away = True
            self._open = True
            idle, self._idle = self._idle, []
        logger.warning(
            "Broker %s can't be reached or does not confirm (%s: %s). Jobs are safe in the database; the sweeper "
            "publishes them when it is back.",
            self.app.connection_for_write().as_uri(),
            type(error).__name__,
            error,
        )
        for link in idle:
            link.drop()
        self._start_probe()

    def _start_probe(self) -> None:
        """Start the thread that closes the breaker, unless it lives. Where none can be started (a limit on threads),
        whoever asks for the breaker next tries again, once a second."""
        with self._lock:
            now = time.monotonic()
            if now < self._probe_at or (self._probe is not None and self._probe.is_alive()):
                return
            self._probe_at = now + 1.0
            probe = threading.Thread(target=self._probe_until_back, name="reliable_jobs-probe", daemon=True)
            try:
                probe.start()
            except RuntimeError as error:
                logger.warning("No thread to look for the broker's return (%s); trying again.", error)
            else:
                self._probe, self._probe_at = probe, 0.0

    def _probe_until_back(self, sleep: Callable[[float], None] = time.sleep) -> None:
        pause = 0.5
        while not self.reachable(timeout=2.0):
            sleep(pause)
            pause = min(pause * 2, 15.0)
        self._open = False
        self.close()  # the probe's own connection: whoever has closed this publisher meanwhile would not close it again
        logger.warning("Broker is back; publishing on commit again.")


_publishers: dict[int, Publisher] = {}
_publishers_lock = threading.Lock()


def _tell(confirmed: Iterable[Outgoing]) -> None:
    for message in confirmed:
        pointer = message.headers.get(HEADER, {})
        about = {"job_id": message.id, "task": message.headers["task"], "queue": message.queue}
        using = message.relayed_from or pointer["using"]
        signals.send(signals.job_published, using, [{**about, "send": pointer.get("send")}])


def _new_lock_after_fork() -> None:
    global _publishers_lock
    _publishers_lock = threading.Lock()


# The sweeper's thread beside a worker may hold it at the moment when the pool forks a new child.
os.register_at_fork(after_in_child=_new_lock_after_fork)


def publisher(app: Celery | None = None) -> Publisher:
    """The process's publisher for an app (the current one by default)."""
    real = app_or_default(app)
    with _publishers_lock:
        found = _publishers.get(id(real))
        if found is None or found.app is not real:
            found = _publishers[id(real)] = Publisher(real)
            atexit.register(found.close)
        return found
