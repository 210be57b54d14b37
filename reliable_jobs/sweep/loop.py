"""The thread that sweeps: in beat, beside a worker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from celery import Celery

from reliable_jobs.compat.django import close_connections
from reliable_jobs.sqlite_forks import without_forks
from reliable_jobs.sweep import statistics, sweeper

logger = logging.getLogger(__name__)


class SweepLoop:
    """A thread that sweeps: at an interval of its own, or whenever :meth:`wake` is called."""

    def __init__(
        self,
        app: Celery,
        *,
        actor: str,
        interval: float | None,
        keep_connections: bool = False,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.app = app
        self.actor = actor
        self.interval = interval
        self.keep_connections = keep_connections
        self.before = before
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name=f"reliable_jobs-{actor}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self, timeout: float | None = 5.0) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def run(self) -> None:
        more = self.interval is not None  # the first round at once: jobs may have waited for this process
        while not self._stop.is_set():
            if not more:
                self._wake.wait(self.interval)
                self._wake.clear()
            if not self._stop.is_set():
                with without_forks():
                    more = self.once()
        close_connections()

    def once(self) -> bool:
        """One round. Says whether there is more to do at once."""
        if self.before is not None:
            self._try(self.before)
        report = sweeper.Report()
        self._try(lambda: sweeper.sweep(self.app, actor=self.actor, report=report))
        self._try(statistics.roll_when_due)
        if not (report.more or self.keep_connections):
            close_connections()
        return report.more

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            # A sweeper that dies would be noticed only when jobs are missing; it logs and goes on.
            logger.warning("Sweep by %s failed (%s: %s); trying again.", self.actor, type(error).__name__, error)
            close_connections()
