"""psycopg 3: a transaction that the caller begins, and how the driver waits. Nothing here imports it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from reliable_jobs.compat.register import Library

_T = TypeVar("_T")
PSYCOPG = Library("psycopg", "psycopg", tried="3.2 to 3.3", optional=True)


def begins_plainly(driver: Any) -> bool:
    """Whether psycopg would send a plain BEGIN before the next statement: no transaction has begun, and the BEGIN names
    no isolation level or mode."""
    if driver.info.transaction_status or driver.autocommit:
        return False
    return driver.isolation_level is driver.read_only is driver.deferrable is None


@PSYCOPG.undocumented(
    "Connection._autocommit",
    inside="psycopg._connection_base:BaseConnection.autocommit",
    tests=["test_joined"],
)
def without_begin(driver: Any, send: Callable[[], _T]) -> _T:
    """Send something before which psycopg sends no BEGIN of its own: the BEGIN travels with it, one round trip less.

    The public setter sends nothing either, but refuses inside a transaction, where this ends.

    Args:
        driver: psycopg's connection, outside a transaction and without autocommit.
    """
    driver._autocommit = True
    try:
        return send()
    finally:
        driver._autocommit = False


@PSYCOPG.undocumented("waiting.wait", at="psycopg.waiting:wait", tests=["test_compat", "test_pools"])
def waits_in_c() -> bool | None:
    """Whether psycopg waits for the server in C, where no greenlet can take over; None if it is not loaded.

    PSYCOPG_WAIT_FUNC, the implementation and gevent's patches decide that at its import, so its answer is read.
    """
    waiting = sys.modules.get("psycopg.waiting")
    return None if waiting is None else not inspect.isfunction(waiting.wait)
