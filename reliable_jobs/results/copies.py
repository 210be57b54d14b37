"""Other result backends are brought in line with rows that somebody else than a run has changed.

A backend that is away may take its time: Redis is asked again for twenty seconds. Neither a request nor a sweep waits
for that, so a thread of its own writes.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.app import app_or_default

from reliable_jobs.compat.django import close_connections
from reliable_jobs.models import Job
from reliable_jobs.results.answer import answer
from reliable_jobs.results.backend import LedgerBackend, request_of
from reliable_jobs.sqlite_forks import without_forks

logger = logging.getLogger(__name__)

#: Seconds that the caller waits for the copies of its jobs.
PATIENCE = 1.0
#: Callers whose copies may wait to be written. With more the backend has been away for long.
MOST = 100


def bring_in_line(ids: list[uuid.UUID], using: str) -> None:
    """Write what the rows say to the backend that the project has configured, if it has one that others may read. Ends
    at the first that can't be written: a backend that is away is not asked a thousand times.

    A listener of lifecycle/.
    """
    app = app_or_default()
    usual = LedgerBackend.around(app.backend, app)
    if not usual.is_copied:
        return
    if _is_in_database(usual):
        _copy(app, usual, ids, using)
    else:
        _writer.write(functools.partial(_copy, app, usual, ids, using))


def _copy(app: Celery, usual: LedgerBackend, ids: list[uuid.UUID], using: str) -> None:
    """A worker may settle one of the jobs between the reading of its row and the writing of its copy, and write its own
    copy before this one. So the rows are read again, and those that have changed are written once more."""
    told: dict[uuid.UUID, int] = {}
    while rows := _changed_since(told, ids, using):
        for row in rows:
            task: Any = app.tasks.get(row.task)
            backend = task.backend if getattr(task, "writes_outbox", False) else usual
            if backend.is_copied and not backend.copy(str(row.pk), answer(row, None, None), request_of(row)):
                return
            told[row.pk] = row.epoch


def _changed_since(told: dict[uuid.UUID, int], ids: list[uuid.UUID], using: str) -> list[Job]:
    """The rows whose epoch is another than the one that the backend was told of."""
    epochs = dict(Job.objects.using(using).filter(pk__in=ids).values_list("pk", "epoch"))
    changed = [pk for pk, epoch in epochs.items() if told.get(pk) != epoch]
    return list(Job.objects.using(using).filter(pk__in=changed).defer("payload")) if changed else []


def _is_in_database(backend: LedgerBackend) -> bool:
    """Whether the copies go where Django's connections lead: then they are as fast as the rows."""
    return type(backend.wrapped).__module__.startswith("django_celery_results.")


class _Writer:
    """The thread that writes, one for a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: queue.Queue[tuple[Callable[[], None], threading.Event]] = queue.Queue(MOST)
        self._thread: threading.Thread | None = None

    def write(self, copies: Callable[[], None]) -> None:
        """Have copies written, and wait a moment for it."""
        written = threading.Event()
        try:
            with self._lock:
                self._waiting.put_nowait((copies, written))
                if self._thread is None:
                    thread = threading.Thread(target=self._write_copies, name="reliable_jobs-copies", daemon=True)
                    thread.start()
                    self._thread = thread
        except (queue.Full, RuntimeError) as error:  # the second: no room for another thread
            logger.warning("The result backend is away, or no thread can write to it (%r); it is behind.", error)
        else:
            written.wait(PATIENCE)

    def _write_copies(self) -> None:
        while True:
            copies, written = self._waiting.get()
            try:
                try:
                    with without_forks():
                        copies()
                finally:
                    close_connections()  # nothing else here would open one anew after the database has closed it
            except Exception:
                logger.exception("The result backend could not be brought in line.")
            finally:
                written.set()


_writer = _Writer()


def _new_writer_after_fork() -> None:
    global _writer
    _writer = _Writer()


# A thread may hold its lock at the moment when a pool forks a new child.
os.register_at_fork(after_in_child=_new_writer_after_fork)
