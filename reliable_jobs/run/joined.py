"""Statements that travel together with another one, in one text: PostgreSQL answers with a result for each.

run/round_trips.py says which of them, and why. Where a server, a proxy or a patched cursor refuses to take them
together, they are sent one by one from then on.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError, OperationalError

from reliable_jobs.compat.django import driver_of
from reliable_jobs.compat.psycopg import begins_plainly, without_begin
from reliable_jobs.lifecycle.db_errors import sqlstate
from reliable_jobs.lifecycle.sql import OF_EACH_RUN
from reliable_jobs.models import Job
from reliable_jobs.run import prepared

logger = logging.getLogger(__name__)

_TABLE = f'"{Job._meta.db_table}"'


@dataclasses.dataclass
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

    verb: str
    _: dataclasses.KW_ONLY
    begin: bool = False
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    commit: bool = False
    behind: str | None = None
    found: tuple[Any, ...] | None = dataclasses.field(default=None, init=False)
    #: Whether something was prepared, or an EXECUTE stood for the statement.
    _shortened: bool = dataclasses.field(default=False, init=False)

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if not (self.begin or self.before or self.after) or not self._fits(sql):
            return execute(sql, params, many, context)
        connection = context["connection"]
        driver = driver_of(connection)
        try:
            send = functools.partial(self._send, execute, sql, params, many, context, driver)
            if self.begin and begins_plainly(driver):
                # Only around this statement: for one that a wrapper of the project ran earlier, psycopg has begun.
                self.begin, self.before = False, ["BEGIN", *self.before]
                return without_begin(driver, functools.partial(send, outside=True))
            self.begin = False
            return send()
        except (AttributeError, TypeError, NotImplementedError, DatabaseError) as error:
            failed = _switch_off(connection.alias, error, shortened=self._shortened)
            if failed is None:
                raise
            # Without a cause: its SQLSTATE would be taken for the job's.
            raise failed from None

    def _send(
        self, execute: Any, sql: str, params: Any, many: bool, context: Any, driver: Any, *, outside: bool = False
    ) -> Any:
        """Send everything.

        Args:
            outside: of any transaction, so that what is said first stays.
        """
        before, self.before = self.before, ()
        after, self.after = self.after, ()
        is_of_each_run = sql.startswith(OF_EACH_RUN)
        if self.commit:
            sql, after = f"WITH won AS ({sql}\nRETURNING 1) SELECT 1 / count(*) FROM won", ["COMMIT"]
        behind = [self.behind] if self.behind and self.commit else []
        opening, said = list[str](), sql
        if is_of_each_run:
            opening, said = prepared.shorten(context["connection"].alias, driver, sql, params, outside=outside)
        self._shortened = bool(opening) or said != sql
        result = execute("\n; ".join([*opening, *before, said, *after, *behind]), params, many, context)
        if opening:
            prepared.read(driver, context["cursor"])
        self._skip(context["cursor"], [*opening, *before])
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


# --- where they are refused ------------------------------------------------------------------------------------------

#: What servers and proxies answer if they refuse the text, and not what is in it: syntax error, feature not supported,
#: no such prepared statement.
_REFUSALS = ("42601", "0A000", "26000")
#: How they begin where it refuses what is prepared: there is no such statement, its plan would give other columns now,
#: there is one of that name, its parameters can't be told or don't fit.
_OF_PREPARED = ("26000", "0A000", "42")
#: Aliases on which joining has failed in this process.
switched_off: set[str] = set()


class JoiningFailed(OperationalError):
    """The statements could not be sent together. From now on they are sent one by one.

    It has no SQLSTATE, like a lost connection, and is handled like one: a claim is tried again at once, a run whose
    settlement failed is interrupted and runs again. No job fails.
    """


def _switch_off(alias: str, error: Exception, *, shortened: bool) -> JoiningFailed | None:
    """Send statements one by one from now on, if an error comes from joining them, and not from one of them; or send
    them in full, if it comes from prepared ones.

    Args:
        shortened: whether there were any of these.
    """
    if shortened and (sqlstate(error) or "").startswith(_OF_PREPARED):
        prepared.switched_off.add(alias)
        logger.info(
            "Statements can't be prepared on database %r (%s). From now on they are sent in full.",
            alias,
            error,
        )
        return JoiningFailed(f"statements can't be prepared: {error}")
    if not _is_refusal(error):
        return None
    switched_off.add(alias)
    logger.warning(
        "Statements can't be sent together on database %r (%s: %s). From now on they are sent one by one.",
        alias,
        type(error).__name__,
        error,
    )
    return JoiningFailed(f"statements can't be sent together: {type(error).__name__}: {error}")


def _is_refusal(error: Exception) -> bool:
    if not isinstance(error, DatabaseError):
        return True  # of the cursor, or of a library that patches it
    state = sqlstate(error)
    if state is None:
        return not isinstance(error, OperationalError)  # the driver's own; an operational one is a lost connection
    return state in _REFUSALS
