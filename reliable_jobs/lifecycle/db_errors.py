"""Telling errors apart. A database's own troubles cost a job time, never an attempt (I5)."""

from __future__ import annotations

import traceback as traceback_module
from collections.abc import Iterator
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from django.db import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    connections,
)
from django.db.transaction import TransactionManagementError

#: Serialisation failure, deadlock, too many connections, a full disk, a server that only reads (as a failover leaves
#: it); connection exceptions, operator intervention.
_TRANSIENT_STATES = ("40001", "40P01", "53300", "53100", "25006")
_TRANSIENT_CLASSES = ("08", "57P0")
#: Deadlock, lock wait timeout, and the client's "server has gone away" family.
_MYSQL_TRANSIENT = (1205, 1213, 2002, 2003, 2006, 2013, 1040, 1053)
#: The savepoint around the task function is gone.
_MYSQL_NO_SAVEPOINT = 1305
_SQLITE_BUSY = ("database is locked", "database table is locked", "database is busy")


def sqlstate(error: BaseException | None) -> str | None:
    """The SQLSTATE behind a Django database error, if there is one: ``sqlstate`` in psycopg, ``pgcode`` in psycopg2."""
    while error is not None:
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if state:
            return str(state)
        error = error.__cause__
    return None


def is_transient(error: BaseException, using: str) -> bool:
    """Whether the database, and not the function, is to blame, so that running again may help.

    ``statement_timeout`` and ``lock_timeout`` arrive as OperationalError like a lost server; the SQLSTATE tells.
    """
    if not isinstance(error, (OperationalError, InterfaceError, DatabaseError)):
        return False
    if is_idle_timeout(error):
        return False  # it would meet the limit again
    state = sqlstate(error)
    if state is not None:
        return state in _TRANSIENT_STATES or state.startswith(_TRANSIENT_CLASSES)
    connection = connections[using]
    if connection.vendor == "mysql":
        return bool(error.args) and error.args[0] in _MYSQL_TRANSIENT
    if connection.vendor == "sqlite":
        return any(words in str(error).lower() for words in _SQLITE_BUSY)
    # psycopg gives no SQLSTATE for a connection that could not be made or was lost. Its InternalError without one says
    # that the conversation is out of step: "received 2 results from command 'COMMIT'", of a server and of the pooler
    # before it that both tell of the session's end.
    return isinstance(error, (OperationalError, InterfaceError, InternalError))


def stems_from_outage(error: BaseException, using: str) -> bool:
    """Whether an error that the database is to blame for is this exception, its cause, or what was being handled."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        if is_transient(one, using):
            return True
        seen.add(id(one))
        left += [one.__cause__, one.__context__, getattr(one, "exc", None)]  # the last: of Celery's Retry
    return False


def prevents_start(error: BaseException) -> bool:
    """Whether a claim that failed so says something of the database (away, full, read-only after a failover,
    not migrated yet) and nothing of the job. Then the message is held: no function has begun."""
    return isinstance(error, Error) and not isinstance(error, (DataError, IntegrityError))


def is_idle_timeout(error: BaseException) -> bool:
    """The server ended a transaction in which nothing happened for too long. psycopg2 knows this by its text only."""
    return sqlstate(error) == "25P03" or (isinstance(error, Error) and "idle-in-transaction timeout" in str(error))


def is_conflict(error: BaseException, using: str) -> bool:
    """Whether healthy transactions came into each other's way (deadlock, serialisation failure, SQLite's lock), so that
    the whole transaction must start anew."""
    if not isinstance(error, Error):
        return False
    vendor = connections[using].vendor
    if vendor == "mysql":
        return bool(error.args) and error.args[0] in (1205, 1213)
    if vendor == "sqlite":
        return is_transient(error, using)
    return sqlstate(error) in ("40001", "40P01")


def describe(error: BaseException) -> str:
    """``Type: message``, with advice where the error is a known trap of atomic functions."""
    try:
        said = str(error)
    except SoftTimeLimitExceeded:
        raise
    except Exception as trouble:  # an exception whose __str__ fails must not hide that it was raised
        said = f"(its text can't be had: {trouble!r})"
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    advice = _advice(error)
    return f"{text}\n{advice}" if advice else text


def class_of(error: BaseException | type[BaseException]) -> str:
    """The name of an exception's class with its module, as a job's row and its events have it: "ValueError",
    "shop.errors.CardDeclined"."""
    kind = error if isinstance(error, type) else type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return clean(name, 10_000)[-255:]


def _advice(error: BaseException) -> str:
    state = sqlstate(error)
    if isinstance(error, OperationalError) and error.args[:1] == (_MYSQL_NO_SAVEPOINT,):
        return (
            "The transaction had ended before the task function did: by a deadlock that the task function caught, "
            "which on MySQL discards the whole transaction, or by a COMMIT, ROLLBACK or DDL statement of its own. Let "
            "a deadlock's error pass; for the others set atomic = False on the task."
        )
    if state == "25P02" or isinstance(error, TransactionManagementError):
        return (
            "The task function caught a database error and went on in the broken transaction, or ended it itself. Put "
            "the statement that may fail in a savepoint (with transaction.atomic(): …), or set atomic = False on the "
            "task."
        )
    if state in ("3B001", "25P01"):
        return (
            "The task function ended the transaction it was given (a raw COMMIT or ROLLBACK?). Set atomic = False and "
            "use self.fenced() for its own transactions."
        )
    if is_idle_timeout(error):
        return (
            "The task function left its transaction idle for longer than idle_in_transaction_session_timeout allows. "
            "Do what takes long before the first query, raise the limit for this role, or set atomic = False on the "
            "task."
        )
    if isinstance(error, RuntimeError) and "durable" in str(error):
        return "An atomic function already runs in a transaction. Set atomic = False and use self.fenced()."
    return ""


def trace(error: BaseException) -> str:
    return "".join(traceback_module.format_exception(type(error), error, error.__traceback__))


def redact(text: str, secrets: list[Any]) -> str:
    """The text without the values of sensitive arguments, nor the parts of them, however they were printed."""
    shown = {form for secret in secrets for part in _parts(secret) for form in (str(part), repr(part))}
    # The longest first: a secret inside another would leave the rest of it standing.
    for form in sorted(shown, key=len, reverse=True):
        if len(form) >= 3:
            text = text.replace(form, "[hidden]")
    return text


def _parts(secret: Any) -> Iterator[Any]:
    """A value and, of a list or dict, what is in it: an error seldom prints the whole."""
    if secret is None or isinstance(secret, bool):
        return  # every traceback is full of them
    yield secret
    if isinstance(secret, (list, tuple, set, frozenset, dict)):
        for item in secret.values() if isinstance(secret, dict) else secret:
            yield from _parts(item)


def clean(text: str, limit: int) -> str:
    """Text that every database takes: PostgreSQL refuses NUL, no encoding takes lone surrogates (file names are full of
    them), and a megabyte of error helps nobody."""
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return (
        text
        if len(text) <= limit
        else f"{text[: limit // 2]}\n… {len(text) - limit} characters left out …\n{text[-limit // 2 :]}"
    )
