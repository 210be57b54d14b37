from __future__ import annotations

import logging
import signal
import time
from typing import Any

from celery import Celery
from django.core.management.base import CommandError, CommandParser
from django.db import close_old_connections

from reliable_jobs.compat.django import close_connections
from reliable_jobs.management.base import JobCommand
from reliable_jobs.management.options import seconds
from reliable_jobs.sweep import sweeper

logger = logging.getLogger(__name__)

#: How soon a signal ends a pause, in seconds.
TICK = 0.1


class Command(JobCommand):
    help = (
        "Publish due jobs, publish lost ones again, take jobs back from dead workers; over and over, until SIGTERM or "
        "SIGINT. For sites without beat, or beside it: any number of sweepers may run."
    )
    stopped = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--interval", type=seconds, default=1.0, help="Seconds between two sweeps (default: %(default)s)."
        )
        parser.add_argument("--once", action="store_true", help="Sweep once; exit status 1 if that fails.")

    def handle(self, *args: Any, **options: Any) -> None:
        # Declared querysets (ensure_jobs) name tasks, so these must be known.
        app = self.celery_app(with_tasks=True)
        if options["once"]:
            try:
                report = sweeper.sweep(app, actor="manage.py sweep")
            except Exception as error:
                raise CommandError(f"The sweep failed: {type(error).__name__}: {error}") from error
            self.stdout.write(f"Swept: {report}.")
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._loop(app, options["interval"])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        # Nothing that takes a lock: the sweep that it interrupts may hold it.
        self.stopped = True

    def _loop(self, app: Celery, interval: float) -> None:
        self.stdout.write(f"Sweeping every {interval:g} s; SIGTERM or Ctrl-C ends it after the sweep at hand.")
        self.stdout.flush()
        while not self.stopped:
            try:
                close_old_connections()
                report = sweeper.sweep(app, actor="manage.py sweep")
            except Exception as error:
                # A sweeper that dies would be noticed only when jobs are missing; it says so and goes on.
                logger.warning("Sweep failed (%s: %s); trying again.", type(error).__name__, error)
                self.stderr.write(f"Sweep failed ({type(error).__name__}: {error}); trying again.")
                close_connections()
            else:
                if not report.idle:
                    self.stdout.write(f"Swept: {report}.")
                    self.stdout.flush()
                if report.more:
                    continue
            wake = time.monotonic() + interval
            while not self.stopped and (left := wake - time.monotonic()) > 0:
                time.sleep(min(TICK, left))
        self.stdout.write("Stopped.")
