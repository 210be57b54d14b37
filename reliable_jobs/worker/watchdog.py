"""A worker that no longer receives messages is noticed, reconnects, and at last ends for its supervisor.

Celery's consumer can live on without consuming: under gevent an acknowledgement that fails in a greenlet is only
logged, and the main loop then waits on a new connection on which nobody consumes; a balancer may accept a connection
and answer nothing. The watchdog is a thread of the worker's main process. Each second it compares the consumer's
channel with the live connection, which costs nothing. When the worker has received nothing for STALL_TIMEOUT seconds
although it has room and rows wait in its queues, it looks at the broker, several times. It acts only if the broker
answers others and not this worker: it shuts the sockets of the process's broker connections, and after three times that
did not help it ends the process with EXIT_STATUS.

It does nothing on a worker that is busy, that shuts down, whose queues are paused (cancel_consumer) or empty, that
waits for a broker that is away, or while other workers hold the messages.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from django.db import Error as DatabaseError

from reliable_jobs import databases, lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.compat.celery_consumer import messages_held, task_consumer_of
from reliable_jobs.compat.celery_pool import may_block, places
from reliable_jobs.compat.celery_worker import active_runs, is_stopping, stop_worker
from reliable_jobs.compat.django import close_connections
from reliable_jobs.conf import settings
from reliable_jobs.models import Job
from reliable_jobs.sqlite_forks import without_forks
from reliable_jobs.status import EventKind, Status
from reliable_jobs.worker import broker_sockets

logger = logging.getLogger(__name__)

#: With this status a process ends whose worker could not be brought back: BSD's EX_TEMPFAIL, "try again".
EXIT_STATUS = 75
#: Seconds between two comparisons of the channel with the live connection.
TICK = 1.0
#: Ticks in a row with a channel of another connection; a reconnect passes through such a state.
MOVED_TICKS = 3
#: Seconds between two looks at the broker, and looks that must agree before the watchdog acts.
LOOK_EVERY = 3.0
LOOKS = 3
#: Seconds after which a loop that has not answered counts as stuck; under gevent a turn may take 2 s.
STUCK = 6.0
#: Times that sockets are shut before the process ends.
TRIES = 3
#: While the worker connects, more looks must agree: Celery pauses up to 30 s between two attempts.
LOOKS_CONNECTING = 14
#: Timeout of the watchdog's own connection to the broker, in seconds.
CONNECT_TIMEOUT = 3.0
#: How long an ending process waits for its active runs, and without any for Celery's own shutdown, in seconds.
LAST_RUNS = 600.0
LAST_WORDS = 10.0


@dataclasses.dataclass
class _Look:
    """What one look at the broker showed."""

    ready: bool
    stuck: bool
    live: Any
    frames: int | None


class Watchdog:
    """Watches one worker. ``tick`` is called about once a second by :meth:`run`."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.received = 0
        self.consuming = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name="reliable_jobs-watchdog", daemon=True)
        self._seen = 0
        self._moved = 0
        self._quiet = 0.0
        self._stuck = 0.0
        self._answered = True
        self._next_look = 0.0
        self._looks: list[_Look] = []
        self._tries = 0

    # --- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(TICK):
            now = time.monotonic()
            try:
                # A process that was stopped (SIGSTOP, a suspended machine) has not been waiting meanwhile.
                self.tick(min(now - before, 2 * TICK))
            except Exception:
                logger.exception("The watchdog stumbled; it goes on.")
            finally:
                close_connections()
            before = now

    def count_message(self) -> None:
        """The consumer got a message from the broker, of whatever kind."""
        self.received += 1

    def _answer(self) -> None:
        """Called by the consumer's loop: it turns."""
        self._answered = True

    # --- what it sees -------------------------------------------------------------------------------------------------

    def tick(self, elapsed: float) -> None:
        consumer = self.worker.consumer
        if is_stopping():
            return
        self._moved = self._moved + 1 if self._channel_is_of_another_connection(consumer) else 0
        if self._moved >= MOVED_TICKS:
            self._moved = 0
            live = broker_sockets.live(consumer.connection)
            logger.warning("The consumer's channel belongs to a connection that is gone; reconnecting.")
            self._reconnect(lambda: broker_sockets.shut(live))
        if self.received != self._seen:
            self._seen, self._tries = self.received, 0
            self._calm()
            return
        self._quiet += elapsed
        # Asked anew each time: a reconnect may throw the question away.
        self._stuck = 0.0 if self._answered else self._stuck + elapsed
        self._answered = False
        consumer.call_soon(self._answer)
        if self._quiet < max(settings.STALL_TIMEOUT, self._next_look):
            return
        self._next_look = self._quiet + LOOK_EVERY
        with without_forks():
            row = self._waiting_row(consumer) if self._has_room(consumer) else None
        if row is None:
            self._calm()
            return
        look = self._look(consumer)
        if look is None:  # the broker is away
            self._looks = []
            return
        if self._looks and not self._deaf(look):
            self._calm()
            return
        self._looks.append(look)
        if len(self._looks) >= (LOOKS if self.consuming else LOOKS_CONNECTING):
            self._act(row)

    def _calm(self) -> None:
        self._quiet, self._next_look, self._looks = 0.0, 0.0, []

    def _channel_is_of_another_connection(self, consumer: Any) -> bool:
        live = broker_sockets.live(consumer.connection)
        channel = getattr(task_consumer_of(consumer), "channel", None)
        return bool(self.consuming and live is not None and channel is not None and channel.connection is not live)

    def _has_room(self, consumer: Any) -> bool:
        pool = self.worker.pool
        limit = getattr(consumer.app.conf, "worker_eta_task_limit", None)  # not in Celery 5.5
        if limit and consumer.qos is not None and consumer.qos.value >= limit:
            return False
        if messages_held(consumer) < places(pool):
            return True
        # A loop that does not turn does not hear of the runs that have ended. In solo and greenlet pools it may wait
        # for a run; elsewhere it never should.
        return self._stuck >= settings.STALL_TIMEOUT and not may_block(pool)

    @staticmethod
    def _queues(consumer: Any) -> list[str]:
        """What the worker consumes at the moment. Of a single active consumer's queue the others get nothing."""
        return [
            queue.name
            for queue in list(consumer.app.amqp.queues.consume_from.values())
            if not (queue.queue_arguments or {}).get("x-single-active-consumer")
        ]

    def _waiting_row(self, consumer: Any) -> tuple[str, Job] | None:
        for alias in databases.in_order():
            waiting = Job.objects.using(alias).filter(
                status=Status.WAITING,
                sends__gt=0,
                due_at__lte=Now() - datetime.timedelta(seconds=settings.STALL_TIMEOUT),
            )
            try:
                for queue in self._queues(consumer):
                    job = waiting.filter(queue=queue).only("pk", "queue").order_by("check_at").first()
                    if job is not None:
                        return alias, job
            except DatabaseError as error:
                logger.debug("The watchdog could not ask database %r: %s", alias, error)
        return None

    def _look(self, consumer: Any) -> _Look | None:
        """None when the broker does not answer: it is away, and the worker waits for it."""
        live = broker_sockets.live(consumer.connection)
        frames = broker_sockets.frames_received(live)
        if frames is not None and self.consuming:
            consumer.call_soon(broker_sockets.ask_for_a_sign, live)
        try:
            ready = broker_sockets.messages_ready(consumer.app, self._queues(consumer), CONNECT_TIMEOUT)
        except Exception as error:  # each transport has its own
            logger.debug("The watchdog could not ask the broker: %r", error)
            return None
        return _Look(ready, self._stuck >= STUCK, live, frames)

    def _deaf(self, look: _Look) -> bool:
        """Since the look before, nothing came although messages were ready; or the connection brought not even the
        answer to a question; or the consumer's loop did not turn."""
        before = self._looks[-1]
        silent = look.frames is not None and look.live is before.live and look.frames == before.frames
        return (before.ready and look.ready) or (before.stuck and look.stuck) or (self.consuming and silent)

    # --- what it does -------------------------------------------------------------------------------------------------

    def _act(self, row: tuple[str, Job]) -> None:
        quiet, (alias, job) = self._quiet, row
        self._tries += 1
        self._calm()
        what = (
            f"The worker has room and received nothing for {quiet:.0f} s, while jobs wait in its queue {job.queue!r} "
            "and the broker answers others."
        )
        if self._tries > TRIES:
            self._end(f"{what} Reconnecting {TRIES} times did not help.", alias, job)
            return
        self._record(f"{what} Its broker connections are closed (time {self._tries} of {TRIES}).", alias, job)
        self._reconnect(broker_sockets.shut_all)

    def _reconnect(self, shut: Callable[[], int]) -> None:
        consumer = self.worker.consumer
        logger.warning("Shut %d broker connection(s).", shut())
        if consumer.hub is not None and self.consuming and self._tries > 1:
            consumer.call_soon(_lost)  # an event loop that no longer watches the socket did not notice the first time

    def _record(self, text: str, alias: str, job: Job) -> None:
        logger.error(text)
        try:
            lifecycle.record(job, alias, EventKind.RESCUE, str(self.worker.hostname), text)
        except DatabaseError as error:
            logger.warning("Could not record it on job %s: %s", job.pk, error)

    def _end(self, text: str, alias: str, job: Job) -> None:
        self._record(f"{text} The process ends with status {EXIT_STATUS}.", alias, job)
        stop_worker(EXIT_STATUS)
        since = time.monotonic()
        while (waited := time.monotonic() - since) < LAST_RUNS and (waited < LAST_WORDS or active_runs()):
            if self._stop.wait(TICK):
                self._stop.clear()  # the shutdown has begun; it may still hang
        logging.shutdown()
        os._exit(EXIT_STATUS)


def _lost() -> None:
    raise ConnectionResetError("reliable_jobs' watchdog closed the broker connection")
