"""For the migrations after the first, which change tables that are in use, by running task functions and open requests.

Whoever waits for a lock of a table holds up everybody behind it. So a change of columns waits a moment, lets go, and
tries again. Indexes are made and dropped CONCURRENTLY on PostgreSQL, which holds up nobody: with a lock, the writers of
a table of a million rows would wait for about a second for each index.

A migration of these has ``atomic = False``, and each operation is a transaction of its own: a second lock that is waited
for while the first is held ends in a deadlock with a run, which has its row and wants to settle it. What is there
already is passed over, so a migration that was broken off can be run again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from django.db import OperationalError, migrations, models, transaction

from reliable_jobs.compat.django import column_names, index_names, may_hold, quoted

logger = logging.getLogger(__name__)

#: Milliseconds that a change waits for its lock at a time, and how often.
LOCK_TIMEOUT_MS, TRIES = 1000, 60
#: Seconds between two tries.
PAUSE = 1.0


def patiently(connection: Any, change: Callable[[], None]) -> None:
    """Make a change in a transaction of its own, or in a savepoint; on MySQL, which has none for that, without.

    Raises:
        django.db.OperationalError: the table was locked each time. Nothing was changed; migrate again.
    """
    if connection.vendor == "mysql":
        change()
        return
    for left in reversed(range(TRIES)):
        try:
            with transaction.atomic(using=connection.alias):
                if connection.vendor == "postgresql":
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


class AddFields(migrations.SeparateDatabaseAndState):
    """New columns of one table, by one lock.

    Args:
        fields: by name. Each is nullable or has a constant ``db_default``: then PostgreSQL and MySQL write no row.
    """

    def __init__(self, model_name: str, fields: Mapping[str, models.Field[Any, Any]]) -> None:
        added = [_AddMissingField(model_name, name, field) for name, field in fields.items()]
        super().__init__(added, added)

    def database_forwards(self, app_label: Any, schema_editor: Any, *states: Any) -> None:
        change = super().database_forwards
        patiently(schema_editor.connection, lambda: change(app_label, schema_editor, *states))

    def database_backwards(self, app_label: Any, schema_editor: Any, *states: Any) -> None:
        change = super().database_backwards
        patiently(schema_editor.connection, lambda: change(app_label, schema_editor, *states))


class _AddMissingField(migrations.AddField):
    def database_forwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if not self._is_there(schema_editor, to_state.apps.get_model(app_label, self.model_name)):
            super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if self._is_there(schema_editor, from_state.apps.get_model(app_label, self.model_name)):
            super().database_backwards(app_label, schema_editor, from_state, to_state)

    def _is_there(self, schema_editor: Any, model: Any) -> bool:
        return _has_column(schema_editor.connection, model, self.name)


class RemoveField(migrations.RemoveField):
    def database_forwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        connection = schema_editor.connection
        if _has_column(connection, from_state.apps.get_model(app_label, self.model_name), self.name):
            change = super().database_forwards
            patiently(connection, lambda: change(app_label, schema_editor, from_state, to_state))


def _has_column(connection: Any, model: Any, name: str) -> bool:
    """Not where the routers keep the table out of a database: PostgreSQL can't describe what is not there."""
    return may_hold(connection.alias, model) and name in column_names(connection, model._meta.db_table)


class AddIndex(migrations.AddIndex):
    def database_forwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        _make(schema_editor, to_state.apps.get_model(app_label, self.model_name), self.index)

    def database_backwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        _drop(schema_editor, from_state.apps.get_model(app_label, self.model_name), self.index)


class RemoveIndex(migrations.RemoveIndex):
    def database_forwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        _drop(schema_editor, *self._of(from_state, app_label))

    def database_backwards(self, app_label: Any, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        _make(schema_editor, *self._of(to_state, app_label))

    def _of(self, state: Any, app_label: str) -> tuple[Any, Any]:
        index = state.models[app_label, self.model_name_lower].get_index_by_name(self.name)
        return state.apps.get_model(app_label, self.model_name), index


def _make(schema_editor: Any, model: Any, index: Any) -> None:
    connection = schema_editor.connection
    if not may_hold(connection.alias, model):
        return
    there = index.name in index_names(connection, model._meta.db_table)
    if connection.vendor != "postgresql":
        if not there:
            schema_editor.add_index(model, index)
        return
    if there and not _is_valid(connection, model, index):  # what a broken-off migration has left
        schema_editor.remove_index(model, index, concurrently=True)
        there = False
    if not there:
        schema_editor.add_index(model, index, concurrently=True)


def _drop(schema_editor: Any, model: Any, index: Any) -> None:
    connection = schema_editor.connection
    if may_hold(connection.alias, model) and index.name in index_names(connection, model._meta.db_table):
        options = {"concurrently": True} if connection.vendor == "postgresql" else {}
        schema_editor.remove_index(model, index, **options)


def _is_valid(connection: Any, model: Any, index: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
               WHERE indrelid = to_regclass(%s) AND relname = %s""",
            [quoted(connection, model._meta.db_table), index.name],
        )
        return bool(cursor.fetchone()[0])
