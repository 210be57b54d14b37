"""New rows of an open transaction, written as late as it allows: before its next statement, or with its COMMIT.

A statement of its own costs the caller a round trip. After the last ``delay()`` of most transactions nothing comes but
the COMMIT; then the INSERT travels with it, and the rows of several calls in a row are one INSERT:

    delay() delay()  │ INSERT of both │ next statement
    delay()          │ INSERT; COMMIT

Until then a row is held by the ``on_commit`` hook of its enqueue and by nothing else: what a rollback does to the hook
it does to the row.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db import DatabaseError, connections, transaction

from reliable_jobs import rows

logger = logging.getLogger("reliable_jobs.outbox")

#: Rows that are held at most.
MOST = 200
#: Of Django's connection wrapper.
_ATTRIBUTE = "_reliable_jobs_late"
_ROLLBACK = re.compile(r"\s*ROLLBACK\b", re.IGNORECASE)


class Hook:
    """An ``on_commit`` hook that may hold a row."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        #: As :func:`reliable_jobs.rows.insert` takes it; None when it is written.
        self.row: Mapping[str, Any] | None = None
        #: Whether a rollback to a savepoint came before it was written.
        self.undone = False

    def __call__(self) -> None:
        if self.undone:
            return
        if self.row is not None:
            # A test that commits nothing, and runs the hooks of its transaction.
            if not connections[self.alias].in_atomic_block:
                logger.error("Job %s was written behind its transaction; who has replaced its hook?", self.row["id"])
            _write(self.alias, [self])
        self.committed()

    def committed(self) -> None:
        """What is to be done once the row is there to stay."""
        raise NotImplementedError


def register(hook: Hook, row: Mapping[str, Any] | None = None) -> None:
    """Register a hook in the open transaction.

    Args:
        row: to be written before the transaction does anything else.

    Raises:
        django.db.transaction.TransactionManagementError: the transaction can only be rolled back.
        django.db.Error: as any write, where the row can't wait.
    """
    connection: Any = connections[hook.alias]
    if row is not None:
        connection.validate_no_broken_transaction()
    transaction.on_commit(hook, using=hook.alias)
    if row is not None:
        hook.row = row
        late = getattr(connection, _ATTRIBUTE, None) or _Late(connection)
        late.has_one_more(hook)


def flush(alias: str) -> None:
    """Write what the open transaction has not written yet.

    Raises:
        django.db.Error: as any write.
    """
    late: _Late | None = getattr(connections[alias], _ATTRIBUTE, None)
    if late is not None:
        late.flush()


class _Late:
    """Stands before each statement and before the COMMIT of one connection, as soon as that has held a row."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        #: How many rows are held; too many after a rollback.
        self._held = 0
        #: What ``connection.commit()`` was.
        self._commit: Callable[[], None] = connection.commit
        # The outermost one, and not what execute_wrapper() takes off again at the end of somebody's ``with``.
        connection.execute_wrappers.insert(0, self._before_statement)
        connection.commit = self._before_commit
        setattr(connection, _ATTRIBUTE, self)

    def has_one_more(self, hook: Hook) -> None:
        self._held += 1
        # Where a tool has put a function of its own into Django's list, the COMMIT would not find the row.
        if self._connection.run_on_commit[-1][1] is not hook:
            self.flush()
            _write(hook.alias, [hook])
        elif self._held >= MOST:
            self.flush()

    def flush(self, *, commit: bool = False) -> None:
        if self._held and not self._connection.needs_rollback:
            _write(self._connection.alias, self._unwritten(), commit=commit)
            self._held = 0

    def _unwritten(self) -> list[Hook]:
        """In the order of their enqueue. All that come before a written one are written."""
        found: list[Hook] = []
        for _, hook, _ in reversed(self._connection.run_on_commit):  # private: pinned by tests/test_flush.py
            if isinstance(hook, Hook):
                if hook.row is None:
                    break
                found.append(hook)
        return found[::-1]

    def _before_statement(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if self._held and isinstance(sql, str) and _ROLLBACK.match(sql):
            # To a savepoint, all of them: making it was a statement, before which the rows until then were written.
            for hook in self._unwritten():
                hook.row, hook.undone = None, True
            self._held = 0
        self.flush()
        return execute(sql, params, many, context)

    def _before_commit(self) -> None:
        if not self._connection.in_atomic_block:  # otherwise commit() is refused
            try:
                self.flush(commit=True)
            except DatabaseError:
                raise  # Django rolls back
            except BaseException:
                self._connection.rollback()
                raise
        self._commit()


def _write(alias: str, hooks: Sequence[Hook], *, commit: bool = False) -> None:
    held = [(hook, hook.row) for hook in hooks if hook.row is not None]
    if not held:
        return
    for hook, _ in held:
        hook.row = None  # the INSERT is a statement too
    try:
        rows.insert(alias, [row for _, row in held], commit=commit)
    except BaseException:
        for hook, row in held:
            hook.row = row
        raise
