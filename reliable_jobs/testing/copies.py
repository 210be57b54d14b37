"""Copies of the test's PostgreSQL databases, so that each of many runs starts from what the test has set up."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

from django.db import DatabaseError, connections

from reliable_jobs.compat.django import close_connections, copied_connection, is_barred, settings_of

#: How long somebody else's connection may hold up a copy, in seconds.
PATIENCE = 5.0
_numbers = itertools.count(1)


@contextlib.contextmanager
def copied_databases() -> Iterator[None]:
    """All PostgreSQL databases that this test may use are copies of themselves meanwhile, and as they were afterwards.

    The connections of this thread are closed on both ways.

    Raises:
        django.db.DatabaseError: a database can't be copied, because others are connected to it, or for want of the
            privilege CREATEDB, which Django's test runner needs too.
    """
    close_connections()
    copies: dict[tuple[Any, ...], str] = {}
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for alias in _usable():
            settings = settings_of(connections[alias])
            server = (settings["HOST"], settings["PORT"], settings["NAME"])
            if server not in copies:
                name = f"{settings['NAME'][:40]}_copy_{os.getpid()}_{next(_numbers)}"
                _maintain(alias, f'CREATE DATABASE "{name}" TEMPLATE "{settings["NAME"]}"')
                copies[server] = name
            before.append((settings, dict(settings)))
            # A pool is kept per alias, and would go on serving connections to the original.
            options = {key: value for key, value in settings["OPTIONS"].items() if key != "pool"}
            settings.update(NAME=copies[server], OPTIONS=options)
        yield
    finally:
        close_connections()
        for settings, as_they_were in before:
            settings.update(as_they_were)
        for alias in _usable():
            settings = settings_of(connections[alias])
            server = (settings["HOST"], settings["PORT"], settings["NAME"])
            if server in copies:
                _maintain(alias, f'DROP DATABASE "{copies.pop(server)}" WITH (FORCE)')


def _usable() -> list[str]:
    # Django's test cases replace connect() of the aliases that are not in their ``databases``.
    return [
        alias
        for alias in connections
        if connections[alias].vendor == "postgresql" and not is_barred(connections[alias])
    ]


def _maintain(alias: str, sql: str) -> None:
    """One statement about a database, from another one of the same server."""
    connection = copied_connection(connections[alias])
    settings_of(connection)["NAME"] = "postgres"
    settings_of(connection)["OPTIONS"].pop("pool", None)
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                with connection.cursor() as cursor:
                    cursor.execute(sql)
                return
            except DatabaseError as error:
                # 55006: somebody is connected. A process that has just ended may be, to the server's eyes.
                if getattr(error.__cause__, "sqlstate", None) != "55006" or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)
    finally:
        connection.close()
