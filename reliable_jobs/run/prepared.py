"""Statements that PostgreSQL parses and plans once in a session, and then only carries out.

It takes longer to parse and plan a claim or a settlement than to carry it out. What psycopg prepares can't travel with
other statements, so this is done in words, within the texts of joined.py: ``PREPARE`` before the BEGIN of a claim, and
``EXECUTE`` in place of the statement from then on.

Not behind a pooler, which may give each transaction another session: a driver that speaks with the server itself knows
the id of the server's process, and a pooler tells it another number. Not while the jobs table is small: PostgreSQL
keeps the plan, and the best one for a small table reads all of it. A session asks for both now and then.

Where the server does not know a statement any more (``DISCARD ALL`` in a task function), all are sent in full from then
on, until the process ends, and that run is interrupted: see joined.py. So only the first run of a job is settled by an
EXECUTE, and that of none whose task never runs again. (A savepoint before the EXECUTE would save the run. But then it
changes, in a subtransaction, a row that the transaction has locked: PostgreSQL makes a MultiXact for each job.)
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import Any

from reliable_jobs.models import Job

#: The claims of a session before it prepares anything: that takes as long as ten statements.
FIRST_CLAIMS = 20
#: Of the jobs table, in bytes. A plan that reads so much for one row is never the best.
LARGE = 1_000_000
#: Statements of a session. There are about four. A wrapper that adds a comment of its own each time makes another one
#: of each.
MOST = 12
#: A session asks every so many claims.
LOOK_EVERY = 100

#: Aliases on which a server has refused this, in this process.
switched_off: set[str] = set()
_sessions: weakref.WeakKeyDictionary[Any, _Session] = weakref.WeakKeyDictionary()


def shorten(alias: str, driver: Any, text: str, parameters: Sequence[Any], *, outside: bool) -> tuple[list[str], str]:
    """What to say in place of a statement of each run, with the same parameters.

    Args:
        driver: psycopg's connection.
        outside: a BEGIN comes before it, outside any transaction.

    Returns:
        what to say before the BEGIN, and the statement or the EXECUTE that stands for it. If the former is not empty,
        hand the cursor to :func:`read`.
    """
    if alias in switched_off:
        return [], text
    session = _sessions.get(driver)
    if session is None:
        session = _sessions[driver] = _Session()
    return session.opening() if outside else [], session.shortened(text, parameters)


def read(driver: Any, cursor: Any) -> None:
    """Read what the server has answered to the first statement that :func:`shorten` gave."""
    if cursor.description is not None:
        process, is_large = cursor.fetchone()
        _sessions[driver].note(fit=process == driver.info.backend_pid and is_large)


class _Session:
    """The statements of one session. Kept by the driver's connection: a new one begins anew."""

    def __init__(self) -> None:
        self._claims = 0
        self._fit = False
        self._wanted: set[str] = set()
        self._names: dict[str, str] = {}
        self._useless: list[str] = []

    def opening(self) -> list[str]:
        self._claims += 1
        looks = self._claims % LOOK_EVERY == FIRST_CLAIMS % LOOK_EVERY
        if looks:
            self._begin_anew()
        said = [f"DEALLOCATE {name}" for name in self._useless]
        self._useless = []
        if self._fit:
            self._names.update({text: _name(text) for text in self._wanted})
            said += [f"PREPARE {self._names[text]} AS {_numbered(text)}" for text in self._wanted]
            self._wanted = set()
        if looks:
            said.insert(0, f"""SELECT pg_backend_pid(), pg_relation_size('"{Job._meta.db_table}"') > {LARGE}""")
        return said

    def note(self, *, fit: bool) -> None:
        """Whether anything may be prepared from now on."""
        self._fit = fit
        if not fit:
            self._useless, self._names = list(self._names.values()), {}

    def _begin_anew(self) -> None:
        """A plan that was made while the table was short of rows is kept until PostgreSQL analyzes it again."""
        self._useless += self._names.values()
        self._wanted |= self._names.keys()
        self._names = {}

    def shortened(self, text: str, parameters: Sequence[Any]) -> str:
        if (name := self._names.get(text)) is not None:
            return f"EXECUTE {name} ({', '.join(['%s'] * len(parameters))})"
        if len(self._names) + len(self._wanted) < MOST:
            self._wanted.add(text)
        return text


def _name(text: str) -> str:
    """The same for the same text: what another release calls so is the same statement."""
    return f"reliable_jobs_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _numbered(text: str) -> str:
    """With ``$1``, ``$2`` … in place of each ``%s``."""
    first, *others = text.split("%s")
    return first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))
