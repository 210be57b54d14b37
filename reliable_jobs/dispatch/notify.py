"""Telling a relay that there is work, after the commit.

A NOTIFY inside the caller's transaction would serialise all commits of the PostgreSQL instance behind one lock. This
one is a statement of its own after the commit. It changes no row, so its own commit waits for no disk. It costs the
caller one more round trip. A process speaks up at most once in ``NUDGE_EVERY`` seconds; a relay that has been woken
looks again after that time, for what was committed meanwhile. Nothing depends on it: a relay polls.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from django.db import Error, connections

from reliable_jobs.compat.django import driver_of

logger = logging.getLogger(__name__)

CHANNEL = "reliable_jobs"
#: The shortest time between two NOTIFYs of a process, in seconds, and between two looks of a relay at the table.
NUDGE_EVERY = 0.01

_last: dict[str, float] = {}


def nudge(alias: str) -> None:
    """Wake the relays, if this process has not just done so. Call it after the commit; it never raises."""
    connection = connections[alias]
    now = time.monotonic()
    if connection.vendor != "postgresql" or now - _last.get(alias, -NUDGE_EVERY) < NUDGE_EVERY:
        return
    _last[alias] = now
    # InterfaceError, of a connection that has died, is no DatabaseError to Django.
    with contextlib.suppress(Error), connection.cursor() as cursor:
        cursor.execute(f"NOTIFY {CHANNEL}")


class Ear(threading.Thread):
    """Listens on one database and calls back at each notification, until stopped. Where it can't listen (another
    database than PostgreSQL, a pooler before it) the relay's polling is all there is."""

    def __init__(self, alias: str, heard: Callable[[], None]) -> None:
        super().__init__(name=f"reliable_jobs-ear-{alias}", daemon=True)
        self.alias = alias
        self.heard = heard
        self._stop_event = threading.Event()

    def stop(self) -> None:
        self._stop_event.set()
        if self.is_alive():
            self.join(timeout=5.0)

    def run(self) -> None:
        if connections[self.alias].vendor != "postgresql":
            return
        while not self._stop_event.is_set():
            try:
                self._listen()
            except Exception as error:  # it is only a hint; the relay polls meanwhile
                logger.info("Can't listen on database %r (%s); polling only, for now.", self.alias, error)
                self._stop_event.wait(5.0)
            finally:
                connections[self.alias].close()

    def _listen(self) -> None:
        connection = connections[self.alias]
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            if cursor.fetchone()[0] != driver_of(connection).info.backend_pid:
                # A LISTEN would stay on a session that a pooler gives to others: psycopg keeps for each of them, for as
                # long as its connection lasts, the notifications that nobody there waits for.
                logger.info("Database %r is behind a pooler; polling only.", self.alias)
                self._stop_event.set()
                return
            cursor.execute(f"LISTEN {CHANNEL}")
        self.heard()  # who spoke while nobody listened
        while not self._stop_event.is_set():
            for _ in driver_of(connection).notifies(timeout=0.5):
                self.heard()
