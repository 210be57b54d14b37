"""The statements around an atomic task function, in as few round trips as the promises leave.

One by one, a run costs eight: begin, claim, savepoint, function, constraints, release, settle, commit. On PostgreSQL
with psycopg 3 statements can travel together, so that they are three:

    BEGIN; claim; SAVEPOINT │ the function's own │ SET CONSTRAINTS; RELEASE; settle; COMMIT

Where a group waits for the job, the look whether another part of it is unfinished comes along behind the COMMIT. It has
a snapshot of its own, taken after the commit: so of two last parts at least one sees nothing left.

PostgreSQL takes several statements as one text and answers with a result for each, if the client puts the parameters
into the text (Django's default). On loopback this is worth a fifth of a worker's rate, on a network more. (psycopg's
pipeline mode was measured too: no gain over single statements.)

It is done by an ``execute_wrapper``, so the code that writes the claim or the settlement does not know about it. If the
joining itself fails (a proxy refuses several statements in one text, a patched cursor has no ``nextset()``), it is
switched off for that database until the process ends: see joined.py.

An error in the last text is told apart by the server itself: before the RELEASE the savepoint is still there to be
rolled back to, and the error is the function's (a deferred constraint); behind it the whole transaction is gone. A
COMMIT that travels with the settlement must not happen where the fence did not hold, so that one fails by a division
then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from django.db import DatabaseError, connections, transaction

from reliable_jobs.compat.django import driver_of
from reliable_jobs.compat.django_transaction import (
    OPENS_SAVEPOINT,
    RELEASES_SAVEPOINT,
    commits_on_exit,
    open_blocks,
    was_closed,
    will_roll_back,
)
from reliable_jobs.lifecycle.db_errors import sqlstate
from reliable_jobs.run import joined
from reliable_jobs.run.joined import Join, JoiningFailed
from reliable_jobs.run.state import Run

_T = TypeVar("_T")
_DIVISION_BY_ZERO = "22012"


def can_join(connection: Any) -> bool:
    """Whether statements can travel together: PostgreSQL, psycopg 3, parameters bound by the client."""
    if connection.vendor != "postgresql" or connection.alias in joined.switched_off:
        return False
    try:
        from psycopg import ClientCursor
    except ImportError:  # psycopg2
        return False
    factory = getattr(driver_of(connection), "cursor_factory", None)
    return isinstance(factory, type) and issubclass(factory, ClientCursor)  # psycopg takes any callable


@contextmanager
def savepoint_names(connection: Any, method: str) -> Iterator[list[str]]:
    """Inside, Django opens or releases savepoints in its own books only and sends nothing. Yields a list to which the
    names of those savepoints are added; it stays empty on a backend without savepoints.

    Args:
        method: OPENS_SAVEPOINT or RELEASES_SAVEPOINT.
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


class FunctionUndone(Exception):
    """What the task function wrote is rolled back, and the transaction can be used; the cause says why."""


class ConstraintViolated(FunctionUndone):
    """What the task function wrote violates a deferred constraint; the cause says which."""


class FunctionSavepoint:
    """Inside the transaction of a run:

    with transaction.atomic(using=using), FunctionSavepoint(using) as savepoint:
        claim = savepoint.claim(take_the_row)
        try:
            ...  # the task function
            savepoint.keep()
        except BaseException as error:
            raise savepoint.undo(error)
        savepoint.settle(write, alone=True)
    """

    def __init__(self, using: str) -> None:
        self._connection: Any = connections[using]
        self._block = transaction.atomic(using=using)
        self._entered = False
        #: The savepoint's, where statements are joined.
        self._name = ""
        #: Whether the settlement is to release it.
        self._owed = False
        #: The row that the statement behind the COMMIT has found; None where none was sent.
        self.found: tuple[Any, ...] | None = None

    def __enter__(self) -> FunctionSavepoint:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._leave(error)
        elif self._entered:
            # Released with the settlement; or nothing was claimed, and the transaction ends with nothing in it.
            with savepoint_names(self._connection, RELEASES_SAVEPOINT):
                self._leave(None)

    def _leave(self, error: BaseException | None) -> None:
        if self._entered:
            self._entered = False
            self._block.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def claim(self, take: Callable[[], _T]) -> _T:
        """Take the row and make the savepoint, together where statements can be joined. From here on the task function
        may write; then :meth:`keep` or :meth:`undo` it.

        Args:
            take: its first statement is the one that locks the row.
        """
        if not can_join(self._connection):
            taken = take()
            self._enter()
            return taken
        if len(open_blocks(self._connection)) == 1:
            # The same name for each run: what is the same text is parsed once.
            transaction.clean_savepoints(self._connection.alias)
        with savepoint_names(self._connection, OPENS_SAVEPOINT) as names:
            self._enter()
        self._name = names[0] if names else ""
        made = [f'SAVEPOINT "{name}"' for name in names]
        join = Join("SELECT", begin=True, after=made)
        with self._connection.execute_wrapper(join):
            taken = take()
        if join.after:
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

    def keep(self) -> None:
        """What the task function wrote stays.

        Raises:
            django.db.Error: a deferred constraint failed, where statements are not joined. Undo it.
        """
        # Single statements where the function has called set_rollback(True), or left a block of its own open.
        in_order = not will_roll_back(self._connection) and open_blocks(self._connection)[-1:] == [self._block]
        self._owed = bool(self._name) and in_order
        if not self._owed:
            check_deferred_constraints(self._connection)
            self._leave(None)

    def undo(self, error: BaseException) -> BaseException:
        """What the task function wrote is rolled back. Returns the error, or what went wrong in that."""
        self._owed = False
        try:
            self._leave(error)
        except BaseException as worse:
            return worse
        return error

    def settle(
        self,
        write: Callable[[], bool],
        *,
        alone: bool,
        before: Callable[[], None] | None = None,
        behind: str | None = None,
    ) -> bool:
        """Write the settlement, and with it what is owed. Returns what ``write`` answered.

        Args:
            write: its first statement is the conditional UPDATE of the row; answers whether that won.
            alone: it is the only one, so that the COMMIT may come along.
            before: writes what belongs to the settlement before it.
            behind: a statement that finds one row, sent behind the COMMIT where that comes along: see :attr:`found`.

        Raises:
            FunctionUndone: ConstraintViolated, or ``before`` has failed.
            Exception: ``before`` has failed, and the whole transaction is to be rolled back.
            django.db.Error: as any write or COMMIT.
        """
        if before is not None:
            self._first(before)
        if not self._owed:
            if self._entered:
                # Neither kept nor undone: what was written in it would be committed with the settlement.
                raise RuntimeError("the savepoint of the task function is still open")
            return write()
        self._owed = False
        outermost = len(open_blocks(self._connection)) == 2 and commits_on_exit(self._connection)
        commit = alone and outermost
        owed = ["SET CONSTRAINTS ALL IMMEDIATE", f'RELEASE SAVEPOINT "{self._name}"']
        join = Join("UPDATE", before=owed, commit=commit, behind=behind)
        try:
            with self._connection.execute_wrapper(join):
                won = write()
            if join.before:
                self._send(join.before)
            self.found = join.found
            return won
        except JoiningFailed:
            raise  # the whole transaction is rolled back
        except DatabaseError as error:
            self._leave(error)  # Django rolls back to the savepoint, and notes where that failed
            if not will_roll_back(self._connection) and not was_closed(self._connection):
                raise ConstraintViolated from error
            if commit and sqlstate(error) == _DIVISION_BY_ZERO:
                return False
            raise

    def _first(self, before: Callable[[], None]) -> None:
        try:
            before()
        except Exception as error:
            if not self._owed:
                raise  # the savepoint is gone
            self._owed = False
            self._leave(error)
            if will_roll_back(self._connection) or was_closed(self._connection):
                raise
            raise FunctionUndone from error


# --- what the task function has left of the transaction --------------------------------------------------------------


def is_cut_off(run: Run) -> bool:
    """Whether the task function closed the connection of its transaction, or put another one in its place:
    ``connection.connect()`` resets Django's books, so that they show no transaction at all. A session that was left
    open so is closed: it holds the row's lock."""
    connection: Any = connections[run.claim.using]
    if run.session is None or driver_of(connection) is run.session:
        return bool(was_closed(connection))
    with suppress(Exception):
        run.session.close()
    return True


def check_deferred_constraints(connection: Any) -> None:
    """Deferred constraints fail at the outer COMMIT, behind every savepoint; here it is the function's failure."""
    if connection.vendor == "postgresql" and not will_roll_back(connection):
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
