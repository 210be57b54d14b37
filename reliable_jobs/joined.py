"""Statements that travel together, and statements that the server keeps ready: fewer round trips and less to parse.

For PostgreSQL with psycopg 3 and arguments bound by the client (Django's default). Done to the statements that pass
by, as ``execute_wrapper``: who makes them does not know. psycopg's pipeline mode was measured for the same: no gain
over single statements (1,300 µs a run on two cores, joined ones 850).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import re
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import DatabaseError, OperationalError

from reliable_jobs.failures import sqlstate
from reliable_jobs.models import Job

logger = logging.getLogger("reliable_jobs.execution")

#: Uses on one session after which a statement is prepared there, and how many are.
_WORTH, _MOST = 2, 20
#: Seconds that a plan is used: one that was made for a small table reads the whole of a large one.
_PLAN_AGE = 1.0
_TABLE = f'"{Job._meta.db_table}"'
#: No such statement: a pooler has changed the server's session, or a body has said DEALLOCATE. And "cached plan must
#: not change result type", after a migration.
_NOT_USABLE = ("26000", "0A000")


def can_join(connection: Any) -> bool:
    """Whether statements can travel together: PostgreSQL, psycopg 3, arguments bound by the client."""
    if connection.vendor != "postgresql":
        return False
    try:
        from psycopg import ClientCursor
    except ImportError:  # psycopg2
        return False
    return issubclass(getattr(connection.connection, "cursor_factory", type(None)), ClientCursor)


@contextmanager
def unsaid(connection: Any, method: str) -> Iterator[list[str]]:
    """Inside, Django makes or releases its savepoints for itself only, and tells the server nothing. Gives their names,
    of which there are none where the backend knows no savepoints.

    Args:
        method: ``_savepoint`` or ``_savepoint_commit``. Private: pinned by tests/test_savepoint.py.
    """
    names: list[str] = []
    somebodys = vars(connection).get(method)
    setattr(connection, method, names.append)
    try:
        yield names
    finally:
        if somebodys is None:
            delattr(connection, method)
        else:
            setattr(connection, method, somebodys)


class Join:
    """An ``execute_wrapper`` that sends others along with the first statement on the jobs table; the cursor shows that
    one's result. What is still there afterwards was not sent.

    Args:
        verb: how that statement begins. Other wrappers may have put comments around it, or statements before it.
        begin: begin the transaction too, if nothing has yet.
        commit: end the transaction too, unless the statement, an UPDATE, changed no row.
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
        if not (self.begin or self.before or self.after) or not self._is_meant(sql):
            return execute(sql, params, many, context)
        if not self.begin:
            return self._send(execute, sql, params, many, context)
        self.begin = False
        # Around this statement and no other: what a wrapper of the user's has said before is in the transaction that
        # psycopg begins for it.
        with _begin_later(context["connection"]) as begin:
            if begin:
                self.before = [*_without_old_plans(context["connection"]), "BEGIN", *self.before]
            return self._send(execute, sql, params, many, context)

    def _send(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        before, self.before = self.before, ()
        after, self.after = self.after, ()
        if self.commit:
            sql, after = f"WITH won AS ({sql}\nRETURNING 1) SELECT 1 / count(*) FROM won", ["COMMIT"]
        ready = _ready(context["connection"], sql, params)
        try:
            result = execute("\n; ".join([*before, ready, *after]), params, many, context)
        except DatabaseError as error:
            if ready is sql or sqlstate(error) not in _NOT_USABLE:
                raise
            _give_up(context["connection"], error)
            # Of the server's making, so that it costs the job no attempt; a body's own error of that kind is its own.
            raise OperationalError(f"a statement that was prepared can't be used any more: {error}") from None
        for _ in before:
            context["cursor"].nextset()
        return result

    def _is_meant(self, sql: Any) -> bool:
        if not isinstance(sql, str) or ";" in sql or "--" in sql:
            return False  # nothing may follow it
        return _TABLE in sql and bool(re.match(rf"(?:\s|/\*(?:.|\n)*?\*/)*{self.verb}\b", sql))


@contextmanager
def _begin_later(connection: Any) -> Iterator[bool]:
    """Inside, psycopg leaves the BEGIN of the transaction that Django has just opened to the caller; it would send it
    in a round trip of its own. Says whether it does."""
    driver = connection.connection
    if driver.info.transaction_status or driver.autocommit:
        yield False  # there is one already, or there shall be none
        return
    if not driver.isolation_level is driver.read_only is driver.deferrable is None:
        yield False  # it says more than BEGIN
        return
    with _no_begin(driver):
        yield True


@contextmanager
def _no_begin(driver: Any) -> Iterator[None]:
    """Inside, psycopg begins no transaction for a statement."""
    # Private: its setter refuses in a transaction, and in one is where this may end. Pinned by tests/test_joined.py.
    before, driver._autocommit = driver._autocommit, True
    try:
        yield
    finally:
        driver._autocommit = before


# --- prepared statements ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Session:
    """What one connection's session on the server is known to have, and has been asked."""

    uses: dict[str, int] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    planned_at: float = 0.0


_sessions: weakref.WeakKeyDictionary[Any, _Session] = weakref.WeakKeyDictionary()
#: Aliases where the server forgets what it has prepared: behind a pooler that changes sessions between transactions.
_given_up: set[str] = set()


def _ready(connection: Any, sql: str, params: Any) -> str:
    """The statement, or an EXECUTE of it where it is prepared."""
    session = _sessions.setdefault(connection.connection, _Session())
    name = session.names.get(sql)
    if name is not None:
        return f"EXECUTE {name}" + (f"({', '.join(['%s'] * len(params))})" if params else "")
    if sql not in session.uses and len(session.uses) >= _MOST:
        session.uses.clear()  # most of them are not asked twice: comments with a trace's id, bundles of odd sizes
    session.uses[sql] = session.uses.get(sql, 0) + 1
    return sql


def _without_old_plans(connection: Any) -> list[str]:
    """After five uses PostgreSQL keeps a plan until the statistics change, which may be long after the table has."""
    session = _sessions.get(connection.connection)
    now = time.monotonic()
    if session is None or not session.names or now - session.planned_at < _PLAN_AGE:
        return []
    session.planned_at = now
    return ["DISCARD PLANS"]


def prepare(connection: Any) -> None:
    """Prepare what this session has been asked again and again. Call it between transactions: a failure does no harm.

    Not where Django is told of a pooler in transaction mode (``DISABLE_SERVER_SIDE_CURSORS``); one that it has not been
    told of shows by an error of a claim, and that is the last.
    """
    driver = connection.connection
    session = _sessions.get(driver)
    if session is None or connection.alias in _given_up or connection.settings_dict["DISABLE_SERVER_SIDE_CURSORS"]:
        return
    wanted = [sql for sql, uses in session.uses.items() if uses >= _WORTH and sql not in session.names]
    room = _MOST - len(session.names)
    if not wanted or not room or driver.info.transaction_status:
        return
    names = {sql: _name(sql) for sql in wanted[:room]}
    # In one message: behind a pooler each could go to another session.
    text = "; ".join(f"PREPARE {name} AS {_numbered(sql)}" for sql, name in names.items())
    try:
        with _no_begin(driver):
            driver.execute(text)
    except driver.Error as error:
        # What says something of the statement or its name says it for good; a lock or a lost connection does not.
        if (error.sqlstate or "").startswith("42"):
            _give_up(connection, error)
    else:
        session.names.update(names)
        session.planned_at = time.monotonic()


def _name(sql: str) -> str:
    # A pooler's session may have been prepared by another release of this app.
    return f"reliable_jobs_{hashlib.sha256(sql.encode()).hexdigest()[:16]}"


def _numbered(sql: str) -> str:
    numbers = itertools.count(1)
    return re.sub("%[s%]", lambda found: f"${next(numbers)}" if found[0] == "%s" else "%", sql)


def _give_up(connection: Any, error: Exception) -> None:
    _given_up.add(connection.alias)
    _sessions.pop(connection.connection, None)
    logger.info("Statements are not prepared on database %r any more: %s", connection.alias, error)
