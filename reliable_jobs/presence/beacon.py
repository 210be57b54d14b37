"""The thread by which a process says that it is there.

It is not the sweep's: a broker that never answers holds a sweep for seconds, and beat's loop turns only when one of its
rows is due. It has a connection of its own, which it closes each time. One long C call silences it in the solo and
thread pools, and under gevent or eventlet a function that does not yield.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Sequence

from django.db import transaction

from reliable_jobs import databases
from reliable_jobs.clock import Now
from reliable_jobs.compat.django import close_connections
from reliable_jobs.conf import settings
from reliable_jobs.models import Process, ProcessSeen
from reliable_jobs.sqlite_forks import without_forks
from reliable_jobs.status import ProcessKind

logger = logging.getLogger(__name__)

#: How long the end of a process waits for its last words to be written, in seconds.
LAST_WORDS = 2.0
#: Runs of which a process tells at most.
MOST_ACTIVE = 50


@dataclasses.dataclass(frozen=True)
class Report:
    """What a process says of itself now."""

    #: Names of the queues that it consumes; none while its broker is away.
    queues: Sequence[str] = ()
    #: Pairs of a task's id and the seconds for which it runs.
    active: Sequence[tuple[str, float]] = ()
    #: None: it has no connection of its own.
    broker_ok: bool | None = None


class Beacon:
    """See the module's docstring. A failure to write is logged once, and again when there is another.

    Args:
        name: "celery@host"; made of the kind and the host where none is given.
        report: called by the thread each time. It may raise: then less is said.
    """

    def __init__(
        self, kind: ProcessKind, *, name: str = "", pool: str = "", report: Callable[[], Report] = Report
    ) -> None:
        host = socket.gethostname()
        self.id = uuid.uuid4()
        self._about = {
            "kind": kind,
            "name": (name or f"{kind}@{host}")[:255],
            "host": host[:255],
            "pid": os.getpid(),
            "release": settings.RELEASE,
            "pool": pool[:32],
        }
        self._report = report
        self._stop = threading.Event()
        self._trouble: set[str] = set()
        #: What it consumed last; while it ends it consumes nothing.
        self._queues: list[str] = []
        self._thread = threading.Thread(target=self._run, name="reliable_jobs-presence", daemon=True)

    def start(self) -> None:
        """Does nothing where PRESENCE_INTERVAL is 0."""
        if settings.PRESENCE_INTERVAL:
            self._thread.start()

    def stop(self) -> None:
        """Say that the process ends by itself. Waits for LAST_WORDS seconds at most; may be called again."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(LAST_WORDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._on_each(self._say)
            self._stop.wait(settings.PRESENCE_INTERVAL or None)
        self._on_each(self._say_goodbye)

    def _on_each(self, write: Callable[[str], None]) -> None:
        try:
            with without_forks():
                for alias in databases.aliases():
                    self._try(alias, write)
        except Exception as error:  # of a router's, or of a driver that can't be loaded
            logger.info("Presence: %s: %s", type(error).__name__, error)
        finally:
            close_connections()

    def _try(self, alias: str, write: Callable[[str], None]) -> None:
        try:
            write(alias)
        except Exception as error:
            if alias not in self._trouble:
                said = f"{type(error).__name__}: {error}".strip()
                logger.warning("Database %r does not show that this process is there (%s); trying again.", alias, said)
            self._trouble.add(alias)
        else:
            self._trouble.discard(alias)

    def _say(self, alias: str) -> None:
        try:
            report = self._report()
        except Exception as error:  # of the worker's inner state, which changes while it is read
            logger.info("Presence: %s: %s", type(error).__name__, error)
            report = Report()
        self._queues = sorted(report.queues) or self._queues
        said = {
            "queues": sorted(report.queues),
            "active": [[task_id, round(seconds, 1)] for task_id, seconds in report.active[:MOST_ACTIVE]],
            "broker_ok": report.broker_ok,
        }
        if not ProcessSeen.objects.using(alias).filter(pk=self.id).update(seen_at=Now(), **said):
            with transaction.atomic(using=alias):
                Process.objects.using(alias).bulk_create([Process(id=self.id, **self._about)], ignore_conflicts=True)
                ProcessSeen.objects.using(alias).create(process_id=self.id, **said)

    def _say_goodbye(self, alias: str) -> None:
        with transaction.atomic(using=alias):
            ProcessSeen.objects.using(alias).filter(pk=self.id).update(queues=self._queues, active=[])
            Process.objects.using(alias).filter(pk=self.id).update(ended_at=Now())
