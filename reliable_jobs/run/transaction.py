"""The savepoint around an atomic body, with as few round trips as the promises leave.

One by one, a run costs eight: begin, claim, savepoint, body, constraints, release, settle, commit. On PostgreSQL
statements can travel together (run/joined_statements.py), so that they are three:

    BEGIN; claim; SAVEPOINT │ the body's own │ SET CONSTRAINTS; RELEASE; settle; COMMIT

An error in the last one is told apart by the server itself: before the RELEASE the savepoint is still there to be
rolled back to, and the error is the body's (a deferred constraint); behind it the whole transaction is gone. A COMMIT
that travels with the settlement must not happen where the fence did not hold, so that one fails by a division then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import DatabaseError, connections, transaction

from reliable_jobs.lifecycle.db_errors import sqlstate
from reliable_jobs.run import joined_statements

_T = TypeVar("_T")
_DIVISION_BY_ZERO = "22012"


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
            with joined_statements.savepoint_names(self._connection, "_savepoint_commit"):
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
        if not joined_statements.can_join(self._connection):
            return take()
        if len(self._connection.atomic_blocks) == 1:
            self._connection.clean_savepoints()  # the same name for each run: what is the same text is parsed once
        with joined_statements.savepoint_names(self._connection, "_savepoint") as names:
            self._enter()
        self._name = names[0] if names else ""
        made = [self._connection.ops.savepoint_create_sql(name) for name in names]
        join = joined_statements.Join("SELECT", begin=True, after=made)
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
        join = joined_statements.Join("UPDATE", before=before, commit=commit)
        try:
            with self._connection.execute_wrapper(join):
                won = write()
            self._send(join.before)
            return won
        except joined_statements.JoiningFailed:
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
