"""Django: transactions, as far as ``django.db.transaction`` does not tell. Needs no loaded apps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from django.db import transaction

from reliable_jobs.compat.django import DJANGO, INIT, WRAPPER

logger = logging.getLogger(__name__)

in_transaction = DJANGO.attribute(
    "connection.in_atomic_block",
    "Whether an ``atomic`` block is open, a test's included.",
    inside=INIT,
    tests=["test_outbox"],
)


open_blocks = DJANGO.attribute(
    "connection.atomic_blocks",
    "The ``atomic`` blocks that are open, the outermost first: a task function may leave one open, or none.",
    inside=INIT,
    tests=["test_savepoint", "test_bundle"],
)


is_of_a_test = DJANGO.attribute(
    "Atomic._from_testcase",
    "Whether an ``atomic`` block is the one that Django's ``TestCase`` holds on every database: not the user's.",
    inside="django.db.transaction:Atomic.__init__",
    tests=["test_outbox"],
)


will_roll_back = DJANGO.attribute(
    "connection.needs_rollback",
    "Whether the innermost ``atomic`` block rolls back. ``transaction.get_rollback()`` raises where a task function's "
    "``connection.connect()`` has reset Django's books, so that they show no block.",
    inside=INIT,
    tests=["test_savepoint", "test_ends_of_runs"],
)


commits_on_exit = DJANGO.attribute(
    "connection.commit_on_exit",
    "Whether the outermost ``atomic`` block commits; not where the caller has turned autocommit off.",
    inside=INIT,
    tests=["test_savepoint", "test_outbox"],
)


was_closed = DJANGO.attribute(
    "connection.closed_in_transaction",
    "Whether a connection was closed in the midst of its transaction.",
    inside=INIT,
    tests=["test_ends_of_runs"],
)


OPENS_SAVEPOINT = DJANGO.method(
    "connection._savepoint",
    "Put aside, Django opens a savepoint in its own books only: its statement travels with the claim.",
    at=f"{WRAPPER}._savepoint",
    takes=("sid",),
    tests=["test_savepoint"],
)
RELEASES_SAVEPOINT = DJANGO.method(
    "connection._savepoint_commit",
    "Put aside, Django releases a savepoint in its own books only: its statement travels with the settlement.",
    at=f"{WRAPPER}._savepoint_commit",
    takes=("sid",),
    tests=["test_savepoint"],
)


def after_commit(hook: Callable[[], Any], using: str) -> None:
    """Call it when the open transaction has been committed, at once where none is open. What it raises is logged, but
    for the time limit of the task function that commits there. Django's own ``robust`` swallows that, and raises an
    AttributeError of its own where a hook without a name (a partial) has failed."""

    def guarded() -> None:
        try:
            hook()
        except SoftTimeLimitExceeded:
            raise
        except Exception:
            logger.exception("What was to come after a commit failed; the commit stands.")

    transaction.on_commit(guarded, using=using)


@DJANGO.undocumented("connection.run_on_commit", inside=INIT, tests=["test_bundle"])
def guard_hooks(connection: Any, guard: Callable[[Callable[[], Any]], Callable[[], Any]]) -> None:
    """Put something around each ``on_commit`` hook of the open transaction: one job's hook must not keep the hooks of
    its bundle's other jobs from running. Django's own ``robust`` asks for names that partials do not have."""
    connection.run_on_commit = [(ids, guard(hook), robust) for ids, hook, robust in connection.run_on_commit]


@DJANGO.undocumented("connection.run_on_commit", inside=INIT, tests=["test_testing"])
def hooks_count(connection: Any) -> int:
    """How many ``on_commit`` hooks the open transaction has."""
    return len(connection.run_on_commit)


@DJANGO.undocumented("connection.run_on_commit", inside=INIT, tests=["test_testing"])
def take_hooks(connection: Any, start: int) -> Iterator[tuple[Callable[[], Any], bool]]:
    """Take the ``on_commit`` hooks from a number on out of the open transaction, also those that they add; with each,
    whether it may fail. In a test's transaction nothing else would run them."""
    while len(connection.run_on_commit) > start:
        _, hook, robust = connection.run_on_commit.pop(start)
        yield hook, robust


@DJANGO.undocumented(
    "transaction.mark_for_rollback_on_error",
    at="django.db.transaction:mark_for_rollback_on_error",
    takes=("using",),
    tests=["test_compat_names"],
)
def doomed_by_error(alias: str) -> AbstractContextManager[None]:
    """Around a statement, as the ORM does: an ``atomic`` block in which one has failed rolls back, though its caller
    catches the error. PostgreSQL has given the transaction up by then."""
    return transaction.mark_for_rollback_on_error(using=alias)
