"""Waiting for a lock, but not for long."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from django.db import Error, OperationalError, connections

#: PostgreSQL's SQLSTATE of a lock that was not to be had in time, and InnoDB's error number.
_NOT_AVAILABLE, _WAIT_TIMEOUT = "55P03", 1205


@contextlib.contextmanager
def impatient(using: str, milliseconds: int) -> Iterator[None]:
    """Statements in the block fail when they wait longer for a lock; tell that by :func:`is_lock_timeout`. Around the
    savepoint that is rolled back then, within a transaction. InnoDB waits at least a second; SQLite knows no locks of
    rows."""
    connection = connections[using]
    wait: str | int
    if connection.vendor == "postgresql":
        name, wait = "lock_timeout", f"{milliseconds}ms"
        read, write = f"SELECT current_setting('{name}')", f"SELECT set_config('{name}', %s, true)"
    elif connection.vendor == "mysql":
        name, wait = "innodb_lock_wait_timeout", max(1, milliseconds // 1000)
        read, write = f"SELECT @@{name}", f"SET SESSION {name} = %s"
    else:
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute(read)
        before = cursor.fetchone()[0]
        cursor.execute(write, [wait])
        try:
            yield
        finally:
            with contextlib.suppress(Error):  # of a connection that has died
                cursor.execute(write, [before])


def is_lock_timeout(error: OperationalError) -> bool:
    """Whether a statement failed because it would have waited for a lock."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state == _NOT_AVAILABLE or bool(error.args and error.args[0] == _WAIT_TIMEOUT)
