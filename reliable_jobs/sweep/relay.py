"""The relay process: publishes due rows as they come, and sweeps and prunes beside that.

    woken, or a pause is over → due rows in windows, until there are none → every second the whole sweep, now and then
    the pruner → a pause until a commit wakes it: short while there was work lately, at most ``interval``

A window's time is spent in turn on the database and on waiting for the broker's confirms, so while there is a backlog
a second thread does the same: one's rows are read while the other's are confirmed. Any number of relays may run;
SKIP LOCKED shares the rows out.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from celery import Celery
from django.db import close_old_connections

from reliable_jobs import databases
from reliable_jobs.compat.django import close_connections
from reliable_jobs.dispatch.notify import NUDGE_EVERY, Ear
from reliable_jobs.presence import Beacon
from reliable_jobs.status import ProcessKind
from reliable_jobs.sweep import pruner, statistics, sweeper

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Pause between two looks while there was work in the last ACTIVE seconds, where no commit wakes the relay; in seconds.
SHORT, ACTIVE = 0.02, 1.0
#: The shortest pause after a round that met an error, or a broker that is away, and published nothing; in seconds.
#: However many processes wake the relay meanwhile: each try is a new connection, and a line in the log.
FAILED_PAUSE = 0.5
#: How often connections are checked before they are used again, in seconds.
CHECK_EVERY = 1.0
#: How often the whole sweep and the pruner run, in seconds.
SWEEP_EVERY = 1.0
PRUNE_EVERY = 3600.0
#: The same after a pruning that failed: other databases may have more to prune.
PRUNE_AGAIN = 60.0
#: Jobs of each database that are pruned between two looks at what is due: a tenth of a second's work.
PRUNE_LIMIT = pruner.BATCH


class Relay:
    """See the module's docstring.

    Args:
        interval: seconds between two looks at idle databases. On PostgreSQL a commit wakes the relay sooner.
    """

    def __init__(self, app: Celery, *, interval: float = 1.0) -> None:
        self.app = app
        self.interval = interval
        self.published = 0
        #: Messages that can't be sent as they are: no queue takes them, or their rows can't be read.
        self.returned = 0
        #: Whether the last round met an error.
        self.failed = False
        #: Whether the last round left due rows, because the broker was away or did not confirm.
        self.left_due = False
        #: Whether the last round met a limit: there is more to do at once.
        self.more = False
        self._wake = threading.Event()
        self._stopped = False
        self._check_at = self._sweep_at = self._prune_at = 0.0
        #: Whether the last pruning met its limit.
        self._prunes_on = False
        self._worked_at = -ACTIVE
        #: When the last round ended, and the shortest time until the next one.
        self._looked_at, self._rest = -FAILED_PAUSE, 0.0
        #: Whether a commit has ended the last pause.
        self._woken = False
        self._second: concurrent.futures.ThreadPoolExecutor | None = None

    def stop(self) -> None:
        """End after what is at hand: at most SWEEP_LIMIT due rows of each database for each thread, a sweep, or a
        pruning that has begun. Safe to call from a signal handler."""
        self._stopped = True

    def run(self) -> None:
        """Until :meth:`stop`."""
        ears = [Ear(alias, self._wake.set) for alias in databases.aliases()]
        beacon = Beacon(ProcessKind.RELAY)
        beacon.start()
        for ear in ears:
            ear.start()
        try:
            with self._at_work():
                while not self._stopped:
                    self._round()
                    if not (self.more or self._prunes_on) or self._rest >= FAILED_PAUSE:
                        self._pause()
        finally:
            beacon.stop()
            for ear in ears:
                ear.stop()

    def drain(self) -> bool:
        """Until nothing is due that could be published. Whether all was: False also where a round met an error, the
        last one left due rows, a message was returned, or :meth:`stop` came first."""
        done = False
        with self._at_work():
            while not self._stopped and not done:
                # What a round did not get confirmed is due again at once, for as long as others are.
                done = not (self._round() or self.more) or self.failed
        return done and not (self.failed or self.left_due or self.returned)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Inside, there is a second thread, and both keep their connections from one look to the next: a new one takes
        longer than the look."""
        close_for_each_look = databases.keep_connections()
        try:
            with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="reliable_jobs-relay") as self._second:
                try:
                    yield
                finally:
                    self._submit(close_connections)
                    self._second = None
        finally:
            close_for_each_look()

    def _submit(self, work: Callable[[], _T]) -> concurrent.futures.Future[_T] | None:
        """Have the second thread do something, if there is one to be had."""
        try:
            return self._second.submit(work) if self._second is not None else None
        except RuntimeError as error:  # no room for another thread
            logger.warning("Relay: no second thread (%s); going on with one.", error)
            return None

    def _pause(self) -> None:
        until = time.monotonic() + self._longest_pause()
        # In small steps: a signal handler may set no event, its lock may be held by what it interrupts.
        while not self._stopped and not self._wake.wait(min(0.1, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                break
        # Jobs that come one by one are looked for together, once in NUDGE_EVERY. A look for each would fill a core.
        rest_until = self._looked_at + min(self._rest, self.interval)
        while not self._stopped and (left := rest_until - time.monotonic()) > 0:
            time.sleep(min(0.1, left))
        self._woken = self._wake.is_set()
        self._wake.clear()

    def _longest_pause(self) -> float:
        """Seconds until the next look, if no commit wakes the relay sooner."""
        quiet = time.monotonic() - self._worked_at
        if self._woken or quiet < SHORT:
            return NUDGE_EVERY  # a process that has just spoken up may have committed more since
        return SHORT if quiet < ACTIVE else self.interval

    def _round(self) -> int:
        """Publish what is due; sweep and prune when it is time. Returns how many rows were published."""
        self.failed = self.left_due = self.more = False
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + CHECK_EVERY
            self._try(close_old_connections)
        found = self._by_two(lambda report, more: sweeper.publish_due(self.app, report, more))
        if time.monotonic() >= self._sweep_at and not self._stopped:
            self._sweep_at = time.monotonic() + SWEEP_EVERY
            found += self._by_two(
                lambda report, more: sweeper.sweep(self.app, actor="relay", report=report, on_backlog=more)
            )
            self._try(statistics.roll_when_due)
        if found:
            self._worked_at = time.monotonic()
        self.published += found
        if time.monotonic() >= self._prune_at and not self._stopped:
            pruned = self._try(lambda: pruner.prune(limit=PRUNE_LIMIT))
            self._prunes_on = pruned is not None and pruned >= PRUNE_LIMIT
            if not self._prunes_on:
                self._prune_at = time.monotonic() + (PRUNE_AGAIN if pruned is None else PRUNE_EVERY)
        self._looked_at = time.monotonic()
        # A commit that comes after an idle look is seen at once: only looks that commits ask for are spaced out.
        self._rest = NUDGE_EVERY if found or self._woken else 0.0
        if not found and (self.failed or self.left_due):
            self._rest, self.more = FAILED_PAUSE, False
        return found

    def _by_two(self, work: Callable[[sweeper.Report, sweeper.OnBacklog], object]) -> int:
        """Do what publishes due rows, with the second thread's help from the first full window on. Returns how many
        rows both have published."""
        helps: list[concurrent.futures.Future[None] | None] = []
        mine, of_second = sweeper.Report(), sweeper.Report()

        def second() -> None:
            close_old_connections()
            sweeper.publish_due(self.app, of_second)

        def help_out() -> None:
            if not helps:
                helps.append(self._submit(lambda: self._try(second)))

        self._try(lambda: work(mine, help_out))
        for future in helps:
            if future is not None:
                future.result()
        self.returned += mine.returned + of_second.returned
        self.left_due |= mine.left_due or of_second.left_due
        self.more |= mine.more or of_second.more
        return mine.published + of_second.published

    def _try(self, work: Callable[[], _T]) -> _T | None:
        try:
            return work()
        except Exception as error:
            # A relay that dies would be noticed only when jobs are late; it says so and goes on.
            logger.warning("Relay: %s: %s; trying again.", type(error).__name__, error)
            self.failed = True
            return None
