"""Changes of a table that is in use: a lock that is waited for holds up everybody behind it, and the jobs table's users
are running bodies and open requests. So each change waits a moment, lets go, and tries again.

One migration for each: a second lock that is waited for while the first is held ends in a deadlock with a run, which
has its row and wants to settle it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from django.db import OperationalError, migrations, transaction

logger = logging.getLogger("reliable_jobs.migrations")

#: Milliseconds that a change waits for its lock at a time, and how often.
LOCK_TIMEOUT_MS, TRIES = 1000, 60
#: Seconds between two tries, for those who have queued up behind it.
PAUSE = 1.0


def patiently(connection: Any, change: Callable[[], None], pause: float = PAUSE) -> None:
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
        time.sleep(pause)


class AddConstraint(migrations.AddConstraint):
    def database_forwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        change = super().database_forwards
        patiently(schema_editor.connection, lambda: change(app_label, schema_editor, from_state, to_state))

    def database_backwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        change = super().database_backwards
        patiently(schema_editor.connection, lambda: change(app_label, schema_editor, from_state, to_state))


class RemoveConstraint(migrations.RemoveConstraint):
    def database_forwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        change = super().database_forwards
        patiently(schema_editor.connection, lambda: change(app_label, schema_editor, from_state, to_state))

    def database_backwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        change = super().database_backwards
        patiently(schema_editor.connection, lambda: change(app_label, schema_editor, from_state, to_state))
