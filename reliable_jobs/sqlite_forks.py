"""A process does not fork while one of its threads is at work in an SQLite database.

SQLite keeps a file's locks in the memory of the process. A child that is forked meanwhile believes for ever that it
holds its parent's: it never lets go of the file again, and nobody can commit any more
(https://www.sqlite.org/howtocorrupt.html, "Carrying an open database file across a fork").
A worker's main process forks whenever it replaces a child, and has threads of ours that sweep and look.
tests/worker/test_sqlite_forks.py shows both.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from reliable_jobs.compat.django import database_settings

#: How long a fork waits for such a thread, in seconds. It may itself wait for another process that has the file.
PATIENCE = 10.0


class _Gate:
    """Held by a thread while it works, and by the thread that forks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._has_it = False

    def before_fork(self) -> None:
        self._has_it = self._lock.acquire(timeout=PATIENCE)

    def after_in_parent(self) -> None:
        if self._has_it:
            self._lock.release()

    def after_in_child(self) -> None:
        # The threads of the parent do not live here, and never give it back.
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        if any("sqlite" in one["ENGINE"] for one in database_settings().values()):
            with self._lock:
                yield
        else:
            yield


_gate = _Gate()
os.register_at_fork(
    before=_gate.before_fork, after_in_parent=_gate.after_in_parent, after_in_child=_gate.after_in_child
)

#: Around database work of a thread beside the main one, transactions and all. No more than that where no database is
#: SQLite.
without_forks = _gate.closed
