"""Several statements in one round trip, on PostgreSQL with psycopg 3.

A run needs BEGIN, the claim and SAVEPOINT before the task function; SET CONSTRAINTS, RELEASE, the settlement and COMMIT
after it. PostgreSQL takes them as one text, ``BEGIN; SELECT …; SAVEPOINT …``, and answers with a result for each, if
the client puts the parameters into the text (Django's default). On loopback this is worth a fifth of a worker's rate,
on a network more. (psycopg's pipeline mode was measured too: no gain over single statements.)

It is done by an ``execute_wrapper``, so the code that writes the claim or the settlement does not know about it. If the
joining itself fails (a proxy refuses several statements in one text, a patched cursor has no ``nextset()``), it is
switched off for that database until the process ends: see :class:`JoiningFailed`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import DatabaseError, OperationalError

from reliable_jobs.lifecycle.db_errors import sqlstate
from reliable_jobs.models import Job

logger = logging.getLogger("reliable_jobs.execution")

_TABLE = f'"{Job._meta.db_table}"'
#: Aliases on which joining has failed in this process.
_switched_off: set[str] = set()
#: What servers and proxies answer if they refuse the text, and not what is in it: syntax error, feature not supported,
#: no such prepared statement.
_REFUSALS = ("42601", "0A000", "26000")


class JoiningFailed(OperationalError):
    """The statements could not be sent together. From now on they are sent one by one.

    It has no SQLSTATE, like a lost connection, and is handled like one: a claim is tried again at once, a run whose
    settlement failed is interrupted and runs again. No job fails.
    """


def can_join(connection: Any) -> bool:
    """Whether statements can travel together: PostgreSQL, psycopg 3, parameters bound by the client."""
    if connection.vendor != "postgresql" or connection.alias in _switched_off:
        return False
    try:
        from psycopg import ClientCursor
    except ImportError:  # psycopg2
        return False
    return issubclass(getattr(connection.connection, "cursor_factory", type(None)), ClientCursor)


@contextmanager
def savepoint_names(connection: Any, method: str) -> Iterator[list[str]]:
    """Inside, Django opens or releases savepoints in its own books only and sends nothing. Yields a list to which the
    names of those savepoints are added; it stays empty on a backend without savepoints.

    Args:
        method: ``_savepoint`` or ``_savepoint_commit``. Private: pinned by tests/test_savepoint.py.
    """
    names: list[str] = []
    patched = vars(connection).get(method)  # by a test or a tracing library
    setattr(connection, method, names.append)
    try:
        yield names
    finally:
        if patched is None:
            delattr(connection, method)
        else:
            setattr(connection, method, patched)


class Join:
    """An ``execute_wrapper`` that sends other statements along with the first statement on the jobs table. The cursor
    then holds that statement's result.

    ``before`` and ``after`` are empty once they were sent. If they are not, no statement fitted, and the caller sends
    them one by one.

    Args:
        verb: how that statement begins; comments may come first.
        begin: send BEGIN too, unless a transaction has begun on the server.
        before, after: statements without parameters.
        commit: send COMMIT too. The statement must be an UPDATE; if it changes no row, the whole text fails with a
            division by zero and nothing is committed.
    """

    def __init__(
        self,
        verb: str,
        *,
        begin: bool = False,
        before: Sequence[str] = (),
        after: Sequence[str] = (),
        commit: bool = False,
    ) -> None:
        self.verb, self.begin, self.before, self.after, self.commit = verb, begin, before, after, commit

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if not (self.begin or self.before or self.after) or not self._fits(sql):
            return execute(sql, params, many, context)
        connection = context["connection"]
        try:
            if not self.begin:
                return self._send(execute, sql, params, many, context)
            self.begin = False
            # Only around this statement: for one that a wrapper of the project ran earlier, psycopg has sent BEGIN.
            with _begin_by_caller(connection) as by_caller:
                if by_caller:
                    self.before = ["BEGIN", *self.before]
                return self._send(execute, sql, params, many, context)
        except (AttributeError, TypeError, NotImplementedError, DatabaseError) as error:
            if not _is_refusal(error):
                raise
            _switched_off.add(connection.alias)
            logger.warning(
                "Statements can't be sent together on database %r (%s: %s). From now on they are sent one by one.",
                connection.alias,
                type(error).__name__,
                error,
            )
            # Without a cause: its SQLSTATE would be taken for the job's.
            raise JoiningFailed(f"statements can't be sent together: {type(error).__name__}: {error}") from None

    def _send(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        before, self.before = self.before, ()
        after, self.after = self.after, ()
        if self.commit:
            sql, after = f"WITH won AS ({sql}\nRETURNING 1) SELECT 1 / count(*) FROM won", ["COMMIT"]
        result = execute("\n; ".join([*before, sql, *after]), params, many, context)
        for _ in before:
            if not context["cursor"].nextset():
                raise NotImplementedError("the server answered fewer statements than it was sent")
        return result

    def _fits(self, sql: Any) -> bool:
        if not isinstance(sql, str) or ";" in sql or "--" in sql:
            return False  # a wrapper of the project added something; another statement can't follow it
        return _TABLE in sql and bool(re.match(rf"(?:\s|/\*(?:.|\n)*?\*/)*{self.verb}\b", sql))


def _is_refusal(error: Exception) -> bool:
    """Whether an error comes from joining the statements, and not from one of them."""
    if not isinstance(error, DatabaseError):
        return True  # of the cursor, or of a library that patches it
    state = sqlstate(error)
    if state is None:
        return not isinstance(error, OperationalError)  # the driver's own; an operational one is a lost connection
    return state in _REFUSALS


@contextmanager
def _begin_by_caller(connection: Any) -> Iterator[bool]:
    """Inside, psycopg sends no BEGIN of its own, which would cost a round trip. Yields whether the caller must send it.

    Not if a transaction has begun, nor if psycopg's BEGIN would name an isolation level or a mode.
    """
    driver = connection.connection
    if driver.info.transaction_status or driver.autocommit:
        yield False  # already in a transaction, or autocommit requested
        return
    if not driver.isolation_level is driver.read_only is driver.deferrable is None:
        yield False
        return
    # Private: the public setter refuses inside a transaction, where this block ends. Pinned by tests/test_joined.py.
    driver._autocommit = True
    try:
        yield True
    finally:
        driver._autocommit = False
