"""Waiting for a lock, but not for long."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from django.db import OperationalError, connections

#: PostgreSQL's SQLSTATE of a lock that was not to be had in time, and InnoDB's error number.
_NOT_AVAILABLE, _WAIT_TIMEOUT = "55P03", 1205


@contextlib.contextmanager
def impatient(using: str, milliseconds: int) -> Iterator[None]:
    """Statements in the block fail when they wait longer for a lock; tell that by :func:`is_lock_timeout`. Must be in a
    savepoint or transaction that is rolled back then. InnoDB waits at least a second; SQLite knows no locks of rows."""
    connection = connections[using]
    names = {"postgresql": "lock_timeout", "mysql": "innodb_lock_wait_timeout"}
    name = names.get(connection.vendor)
    if name is None:
        yield
        return
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute(f"SELECT @@{name}")
            before = cursor.fetchone()[0]
            cursor.execute(f"SET SESSION {name} = %s", [max(1, milliseconds // 1000)])
            try:
                yield
            finally:
                cursor.execute(f"SET SESSION {name} = %s", [before])
            return
        cursor.execute(f"SELECT current_setting('{name}')")
        before = cursor.fetchone()[0]
        cursor.execute(f"SELECT set_config('{name}', %s, true)", [str(milliseconds)])
        yield
        # After an error the rollback to the savepoint puts it back.
        cursor.execute(f"SELECT set_config('{name}', %s, true)", [before])


def is_lock_timeout(error: OperationalError) -> bool:
    """Whether a statement failed because it would have waited for a lock."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state == _NOT_AVAILABLE or bool(error.args and error.args[0] == _WAIT_TIMEOUT)
