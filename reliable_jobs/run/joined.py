"""Statements that travel together with another one, in one text: PostgreSQL answers with a result for each.

run/round_trips.py says which of them, and why.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError

from reliable_jobs.compat.django import driver_of
from reliable_jobs.compat.psycopg import begins_plainly, without_begin
from reliable_jobs.models import Job
from reliable_jobs.run import joining_failed

_TABLE = f'"{Job._meta.db_table}"'


def can_join(connection: Any) -> bool:
    """Whether statements can travel together: PostgreSQL, psycopg 3, parameters bound by the client."""
    if connection.vendor != "postgresql" or connection.alias in joining_failed.switched_off:
        return False
    try:
        from psycopg import ClientCursor
    except ImportError:  # psycopg2
        return False
    factory = getattr(driver_of(connection), "cursor_factory", None)
    return isinstance(factory, type) and issubclass(factory, ClientCursor)  # psycopg takes any callable


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
        behind: a statement that finds one row, sent behind that COMMIT: it sees what all others have committed by then,
            in a transaction of its own. ``found`` is its row; None where it was not sent.
    """

    def __init__(
        self,
        verb: str,
        *,
        begin: bool = False,
        before: Sequence[str] = (),
        after: Sequence[str] = (),
        commit: bool = False,
        behind: str | None = None,
    ) -> None:
        self.verb, self.begin, self.before, self.after, self.commit = verb, begin, before, after, commit
        self.behind = behind if commit else None
        self.found: tuple[Any, ...] | None = None

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if not (self.begin or self.before or self.after) or not self._fits(sql):
            return execute(sql, params, many, context)
        connection = context["connection"]
        try:
            send = functools.partial(self._send, execute, sql, params, many, context)
            if self.begin and begins_plainly(driver_of(connection)):
                # Only around this statement: for one that a wrapper of the project ran earlier, psycopg has begun.
                self.begin, self.before = False, ["BEGIN", *self.before]
                return without_begin(driver_of(connection), send)
            self.begin = False
            return send()
        except (AttributeError, TypeError, NotImplementedError, DatabaseError) as error:
            failed = joining_failed.switch_off(connection.alias, error)
            if failed is None:
                raise
            # Without a cause: its SQLSTATE would be taken for the job's.
            raise failed from None

    def _send(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        before, self.before = self.before, ()
        after, self.after = self.after, ()
        if self.commit:
            sql, after = f"WITH won AS ({sql}\nRETURNING 1) SELECT 1 / count(*) FROM won", ["COMMIT"]
        behind = [self.behind] if self.behind else []
        result = execute("\n; ".join([*before, sql, *after, *behind]), params, many, context)
        self._skip(context["cursor"], before)
        if behind:
            # The cursor stays here. For the caller it is the same: the statement's own answer is one row, too.
            self._skip(context["cursor"], [sql, *after])
            self.found = context["cursor"].fetchone()
        return result

    @staticmethod
    def _skip(cursor: Any, statements: Sequence[str]) -> None:
        for _ in statements:
            if not cursor.nextset():
                raise NotImplementedError("the server answered fewer statements than it was sent")

    def _fits(self, sql: Any) -> bool:
        if not isinstance(sql, str) or ";" in sql or "--" in sql:
            return False  # a wrapper of the project added something; another statement can't follow it
        return _TABLE in sql and bool(re.match(rf"(?:\s|/\*(?:.|\n)*?\*/)*{self.verb}\b", sql))
