"""For the migrations after the first, which change a table that is in use: a lock that is waited for holds up everybody
behind it, and the jobs table's users are running task functions and open requests. So each change waits a moment, lets
go, and tries again.

One migration for each: a second lock that is waited for while the first is held ends in a deadlock with a run, which
has its row and wants to settle it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from django.db import OperationalError, migrations, transaction

logger = logging.getLogger(__name__)

#: Milliseconds that a change waits for its lock at a time, and how often.
LOCK_TIMEOUT_MS, TRIES = 1000, 60
#: Seconds between two tries.
PAUSE = 1.0


def patiently(connection: Any, change: Callable[[], None]) -> None:
    """Make a change in the open transaction.

    Raises:
        django.db.OperationalError: the table was locked each time. Nothing was changed; migrate again.
    """
    if connection.vendor != "postgresql":
        change()
        return
    for left in reversed(range(TRIES)):
        try:
            with transaction.atomic(using=connection.alias):
                with connection.cursor() as cursor:
                    cursor.execute("SELECT set_config('lock_timeout', %s, true)", [str(LOCK_TIMEOUT_MS)])
                change()
            return
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", getattr(error.__cause__, "pgcode", None)) != "55P03" or not left:
                raise
            logger.warning("The jobs table is locked by a running job or an open request; trying again.")
        # Not for the lock, of which nobody says when it will be free: without a pause whoever comes meanwhile would stand
        # behind the next try at once, and the table would be held up all the time instead of half of it.
        time.sleep(PAUSE)


class _Patient:
    """Before an operation, in its bases."""

    def database_forwards(self, app_label: Any, schema_editor: Any, *states: Any) -> None:
        change: Callable[..., None] = super().database_forwards  # type: ignore[misc]
        patiently(schema_editor.connection, lambda: change(app_label, schema_editor, *states))

    def database_backwards(self, app_label: Any, schema_editor: Any, *states: Any) -> None:
        change: Callable[..., None] = super().database_backwards  # type: ignore[misc]
        patiently(schema_editor.connection, lambda: change(app_label, schema_editor, *states))


class AddIndex(_Patient, migrations.AddIndex): ...


class RemoveIndex(_Patient, migrations.RemoveIndex): ...
