"""A site's database and broker, as the campaign sees them: from outside the app, without Django.

Each database answers `connect` and knows how its vendor writes what the campaign asks; each broker knows how many
messages it has. Both have the private server that stands behind them, which faults harm.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amqp
import psycopg

from qa.chaos.disk import small_disk
from tests.support.private_servers import PgBouncer, PrivateMariaDB, PrivatePostgres, PrivateRabbitMQ, PrivateRedis

QUEUE = "chaos"
#: So that the database's log fits on a small disk.
LITTLE_LOG = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
NAME = "chaos"


class Postgresql:
    now = "now()"
    errors: tuple[type[Exception], ...] = (psycopg.OperationalError,)
    name = NAME

    def __init__(self, exit_stack: contextlib.ExitStack, *, pooler: bool) -> None:
        self.disk = exit_stack.enter_context(small_disk())
        postgres = PrivatePostgres(max_connections=80, settings=LITTLE_LOG, parent=self.disk)
        self.server = exit_stack.enter_context(postgres)
        self.pooler: PgBouncer | None = None
        if pooler:
            # Its pause after a failed login is 15 s otherwise, in which it lets nobody in.
            bouncer = PgBouncer(self.server.port, settings={"server_login_retry": "1"})
            self.pooler = exit_stack.enter_context(bouncer)
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {NAME}")
        self.url = self.server.url.rpartition("/")[0] + f"/{NAME}"

    @property
    def port(self) -> int:
        """Where the site goes."""
        return self.pooler.port if self.pooler is not None else self.server.port

    def connect(self) -> Any:
        return psycopg.connect(self.url, autocommit=True, connect_timeout=3)

    def epoch(self, column: str) -> str:
        return f"extract(epoch FROM {column})"

    def heal(self) -> None:
        self.server.start()
        if self.pooler is not None:
            self.pooler.start()

    def logs(self) -> Iterator[Path]:
        yield self.server.dir / "log"
        if self.pooler is not None:
            yield self.pooler.dir / "log"


class MariaDB:
    now = "UTC_TIMESTAMP(6)"
    name = NAME
    disk = None

    def __init__(self, exit_stack: contextlib.ExitStack) -> None:
        import MySQLdb

        self._driver = MySQLdb
        self.errors: tuple[type[Exception], ...] = (MySQLdb.OperationalError, MySQLdb.InterfaceError)
        settings = {"max-connections": "80", "innodb-lock-wait-timeout": "5", "performance-schema": "OFF"}
        self.server = exit_stack.enter_context(PrivateMariaDB(settings=settings))
        self.port = self.server.port
        # Not root: who has its privileges comes in where nobody else does, and writes where nobody else may.
        self.server.sql(
            f"CREATE DATABASE {NAME} CHARACTER SET utf8mb4;"
            "CREATE USER shop IDENTIFIED BY 'secret';"
            f"GRANT ALL ON {NAME}.* TO shop"
        )

    def connect(self) -> Any:
        return self._driver.connect(
            host="127.0.0.1", port=self.port, user="root", database=NAME, autocommit=True, connect_timeout=3
        )

    def epoch(self, column: str) -> str:
        return f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {column}) / 1000000"

    def heal(self) -> None:
        self.server.start()

    def logs(self) -> Iterator[Path]:
        yield self.server.dir / "log"


class Sqlite:
    now = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
    errors: tuple[type[Exception], ...] = (sqlite3.OperationalError,)
    server = None
    port = None
    disk = None

    def __init__(self, directory: Path) -> None:
        self.name = str(directory / "chaos.sqlite3")

    def connect(self) -> Any:
        return sqlite3.connect(self.name, isolation_level=None, timeout=20, check_same_thread=False)

    def epoch(self, column: str) -> str:
        return f"(julianday({column}) - 2440587.5) * 86400"

    def heal(self) -> None:
        pass

    def logs(self) -> Iterator[Path]:
        return iter(())


class RabbitMQ:
    def __init__(self, exit_stack: contextlib.ExitStack) -> None:
        self.server = exit_stack.enter_context(PrivateRabbitMQ())
        self.port = self.server.port

    def depth(self) -> int:
        """Messages that are ready; none where there is no queue, as after a wipe.

        Raises:
            OSError, amqp.AMQPError: the broker is away.
        """
        try:
            return self.server.depth(QUEUE)
        except amqp.NotFound:
            return 0

    def to_come(self) -> int:
        """Messages that may still reach a worker when nothing runs any more."""
        return self.depth()

    def heal(self) -> None:
        self.server.start()


class Redis:
    def __init__(self, exit_stack: contextlib.ExitStack) -> None:
        self.server = exit_stack.enter_context(PrivateRedis())
        self.port = self.server.port

    def depth(self) -> int:
        """Raises OSError or ServerFailed: the broker is away."""
        return self.server.depth(QUEUE)

    def to_come(self) -> int:
        """Those that a dead worker had are delivered again once the visibility timeout is over."""
        return self.depth() + self.server.unacknowledged()

    def heal(self) -> None:
        self.server.start()
        self.server.resume()
        self.server.command("CONFIG", "SET", "maxmemory", "0")


def database(kind: str, exit_stack: contextlib.ExitStack, directory: Path, *, pooler: bool) -> Any:
    if kind == "postgresql":
        return Postgresql(exit_stack, pooler=pooler)
    return MariaDB(exit_stack) if kind == "mariadb" else Sqlite(directory)


def broker(kind: str, exit_stack: contextlib.ExitStack) -> Any:
    return RabbitMQ(exit_stack) if kind == "rabbitmq" else Redis(exit_stack)
