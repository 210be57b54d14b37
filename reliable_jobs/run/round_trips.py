"""The statements around an atomic task function, in as few round trips as the promises leave.

One by one, a run costs eight: begin, claim, savepoint, function, constraints, release, settle, commit. On PostgreSQL
with psycopg 3 statements can travel together, so that they are three:

    BEGIN; claim; SAVEPOINT │ the function's own │ SET CONSTRAINTS; RELEASE; settle; COMMIT

PostgreSQL takes several statements as one text and answers with a result for each, if the client puts the parameters
into the text (Django's default). On loopback this is worth a fifth of a worker's rate, on a network more. (psycopg's
pipeline mode was measured too: no gain over single statements.)

It is done by an ``execute_wrapper``, so the code that writes the claim or the settlement does not know about it. If the
joining itself fails (a proxy refuses several statements in one text, a patched cursor has no ``nextset()``), it is
switched off for that database until the process ends: see :class:`JoiningFailed`.

An error in the last text is told apart by the server itself: before the RELEASE the savepoint is still there to be
rolled back to, and the error is the function's (a deferred constraint); behind it the whole transaction is gone. A
COMMIT that travels with the settlement must not happen where the fence did not hold, so that one fails by a division
then.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import DatabaseError, OperationalError, connections, transaction

from reliable_jobs.compat.psycopg import without_begin
from reliable_jobs.lifecycle.db_errors import sqlstate
from reliable_jobs.models import Job

logger = logging.getLogger("reliable_jobs.execution")

_T = TypeVar("_T")
_DIVISION_BY_ZERO = "22012"
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
        method: ``_savepoint`` or ``_savepoint_commit``. Private: pinned by tests/run/test_savepoint.py.
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
    with without_begin(driver):
        yield True


class ConstraintViolated(Exception):
    """What the body wrote violates a deferred constraint; the cause says which. It is rolled back."""


class BodySavepoint:
    """Inside the transaction of a run:

    with transaction.atomic(using=using), BodySavepoint(using) as savepoint:
        claim = savepoint.claim(take_the_row)
        with savepoint.body():
            ...
        savepoint.settle(write, alone=True)
    """

    def __init__(self, using: str) -> None:
        self._connection: Any = connections[using]
        self._block = transaction.atomic(using=using)
        self._entered = False
        #: The task function has begun.
        self._begun = False
        #: The savepoint's, where statements are joined.
        self._name = ""
        #: Whether the settlement is to release it.
        self._owed = False

    def __enter__(self) -> BodySavepoint:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._leave(error)
        elif self._entered:
            # Released with the settlement; or nothing was claimed, and the transaction ends with nothing in it.
            with savepoint_names(self._connection, "_savepoint_commit"):
                self._leave(None)

    def _leave(self, error: BaseException | None) -> None:
        if self._entered:
            self._entered = False
            self._block.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def claim(self, take: Callable[[], _T]) -> _T:
        """Take the row, and make the savepoint with it where statements can be joined.

        Args:
            take: its first statement is the one that locks the row.
        """
        if not can_join(self._connection):
            return take()
        if len(self._connection.atomic_blocks) == 1:
            self._connection.clean_savepoints()  # the same name for each run: what is the same text is parsed once
        with savepoint_names(self._connection, "_savepoint") as names:
            self._enter()
        self._name = names[0] if names else ""
        made = [self._connection.ops.savepoint_create_sql(name) for name in names]
        join = Join("SELECT", begin=True, after=made)
        with self._connection.execute_wrapper(join):
            taken = take()
        self._send(join.after)
        return taken

    def _send(self, statements: Sequence[str]) -> None:
        """One by one, where a wrapper of the user's has made something else of what they were to travel with."""
        for statement in statements:
            with self._connection.cursor() as cursor:
                cursor.execute(statement)

    def _enter(self) -> None:
        self._block.__enter__()
        self._entered = True

    @contextmanager
    def body(self) -> Iterator[None]:
        """Around the body: what it wrote is rolled back when it raises.

        Raises:
            django.db.Error: a deferred constraint failed, where statements are not joined.
        """
        if not self._entered:
            self._enter()
        self._begun = True
        try:
            yield
            # Single statements where the body has called set_rollback(True), or left a block of its own open.
            in_order = not self._connection.needs_rollback and self._connection.atomic_blocks[-1:] == [self._block]
            self._owed = bool(self._name) and in_order
            if not self._owed:
                check_deferred_constraints(self._connection)
                self._leave(None)
        except BaseException as error:
            self._leave(error)
            raise

    def settle(self, write: Callable[[], bool], *, alone: bool) -> bool:
        """Write the settlement, and with it what is owed. Returns what ``write`` answered.

        Args:
            write: its first statement is the conditional UPDATE of the row; answers whether that won.
            alone: it is the only one, so that the COMMIT may come along.

        Raises:
            ConstraintViolated: see there; the transaction can be used.
            django.db.Error: as any write or COMMIT.
        """
        if not self._owed:
            if self._begun and self._entered:
                # To undo what was written in it failed; with a settlement it would be committed.
                raise RuntimeError("the savepoint of the task function is still open")
            return write()
        self._owed = False
        outermost = len(self._connection.atomic_blocks) == 2 and self._connection.commit_on_exit
        commit = alone and outermost
        before = ["SET CONSTRAINTS ALL IMMEDIATE", self._connection.ops.savepoint_commit_sql(self._name)]
        join = Join("UPDATE", before=before, commit=commit)
        try:
            with self._connection.execute_wrapper(join):
                won = write()
            self._send(join.before)
            return won
        except JoiningFailed:
            raise  # the whole transaction is rolled back
        except DatabaseError as error:
            self._leave(error)  # Django rolls back to the savepoint, and notes where that failed
            if not self._connection.needs_rollback and not self._connection.closed_in_transaction:
                raise ConstraintViolated from error
            if commit and sqlstate(error) == _DIVISION_BY_ZERO:
                return False
            raise


def check_deferred_constraints(connection: Any) -> None:
    """Deferred constraints fail at the outer COMMIT, behind every savepoint; here they still are the body's failure."""
    if connection.vendor == "postgresql" and not connection.needs_rollback:
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
