"""The databases and brokers of sites: each site gets a database and a queue of its own, dropped behind it."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import kombu
import psycopg

from tests.sites.site import Site

HOST = "127.0.0.1"


class Servers:
    """Those that all sites of a run share. PostgreSQL and RabbitMQ are given by their URLs; the others are private
    ones, started when a site first needs them."""

    def __init__(self, postgresql: str, rabbitmq: str) -> None:
        self.postgresql, self.rabbitmq = postgresql, rabbitmq
        self._lock = threading.Lock()
        self._private: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def private(self, name: str, make: Any) -> Any:
        """The private server of this name, started when it is first asked for."""
        with self._lock:
            if name not in self._private:
                self._private[name] = self._stack.enter_context(make())
            return self._private[name]


class Database:
    """A site's database: the values for its settings, and what can be seen from outside."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    def connections(self) -> int | None:
        """Sessions of the site's processes; None where there is no server to ask."""
        return None


class Postgresql(Database):
    def __init__(self, values: dict[str, str], dsn: str) -> None:
        super().__init__(values)
        self._dsn = dsn
        self._connection: Any = None

    def connections(self) -> int | None:
        if self._connection is None:
            self._connection = psycopg.connect(self._dsn, autocommit=True)
        sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
        return int(self._connection.execute(sql, (self.values["name"],)).fetchone()[0])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


@contextlib.contextmanager
def postgresql(site: Site, servers: Servers, folder: Path) -> Iterator[Database]:
    parts = urlsplit(servers.postgresql)
    name = f"site_{site.name.replace('-', '_')}_{uuid.uuid4().hex[:6]}"
    values = {
        "name": name,
        "user": unquote(parts.username or "postgres"),
        "password": unquote(parts.password or ""),
        "host": parts.hostname or HOST,
        "port": str(parts.port or 5432),
    }
    with psycopg.connect(servers.postgresql, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    database = Postgresql(values, servers.postgresql)
    try:
        if site.prepare:
            dsn = parts._replace(path=f"/{name}").geturl()
            with psycopg.connect(dsn, autocommit=True) as connection:
                for statement in site.prepare:
                    connection.execute(statement.replace("$name", name))
        yield database
    finally:
        database.close()
        with psycopg.connect(servers.postgresql, autocommit=True) as admin:
            admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextlib.contextmanager
def sqlite(site: Site, servers: Servers, folder: Path) -> Iterator[Database]:
    yield Database({})


class Broker:
    """A site's broker: the values for its settings, and the faults that it can be given."""

    def __init__(self, values: dict[str, str], queue: str) -> None:
        self.values = {"queue": queue, **values}
        self.queue = queue

    def delete_queue(self) -> None:
        raise NotImplementedError


class Rabbitmq(Broker):
    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        with kombu.Connection(self.values["broker"], connect_timeout=5) as connection:
            yield connection.default_channel

    def delete_queue(self) -> None:
        with self._channel() as channel:
            channel.queue_delete(self.queue)

    def drop(self) -> None:
        with contextlib.suppress(Exception):
            self.delete_queue()
        with contextlib.suppress(Exception), self._channel() as channel:
            channel.exchange_delete(self.queue)


@contextlib.contextmanager
def rabbitmq(site: Site, servers: Servers, folder: Path) -> Iterator[Broker]:
    broker = Rabbitmq({"broker": servers.rabbitmq}, _queue(site))
    try:
        yield broker
    finally:
        broker.drop()


def _queue(site: Site) -> str:
    """Sites of one run share a broker, as projects of one company do: each has a queue of its own."""
    return f"site-{site.name}-{os.getpid()}-{uuid.uuid4().hex[:4]}"


DATABASES = {"postgresql": postgresql, "sqlite": sqlite}
BROKERS = {"rabbitmq": rabbitmq}
