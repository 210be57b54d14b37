"""The databases and brokers of sites: each site gets a database and a queue of its own, dropped behind it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import kombu
import psycopg

from tests.sites.site import Site
from tests.support.private_servers import PgBouncer, PrivateMariaDB, PrivateRabbitMQ, PrivateRedis, free_port

HOST = "127.0.0.1"
STOPPED_SECONDS = 8.0


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

    def private(self, name: str, make: Callable[[], Any]) -> Any:
        """The private server of this name, started when it is first asked for."""
        with self._lock:
            if name not in self._private:
                self._private[name] = self._stack.enter_context(make())
            return self._private[name]


# --- databases --------------------------------------------------------------------------------------------------------


class Database:
    """A site's database: the values for its settings, and the statement that counts the sessions in it."""

    def __init__(self, values: dict[str, str], sessions: str | None = None) -> None:
        self.values = values
        self.sessions = sessions


PG_SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
)
MARIADB_SESSIONS = "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()"


@contextlib.contextmanager
def postgresql(site: Site, servers: Servers, folder: Path) -> Iterator[Database]:
    parts = urlsplit(servers.postgresql)
    name = f"site_{site.name.replace('-', '_').replace('.', '')}_{uuid.uuid4().hex[:6]}"
    names = [name, f"{name}_second"] if "${name}_second" in site.databases else [name]
    with psycopg.connect(servers.postgresql, autocommit=True) as admin:
        try:
            for each in names:
                admin.execute(f'CREATE DATABASE "{each}"')
            if site.prepare:
                with psycopg.connect(parts._replace(path=f"/{name}").geturl(), autocommit=True) as connection:
                    for statement in site.prepare:
                        connection.execute(statement)
            yield Database(_values(parts, name), PG_SESSIONS)
        finally:
            for each in names:
                admin.execute(f'DROP DATABASE IF EXISTS "{each}" WITH (FORCE)')


def _values(parts: SplitResult, name: str) -> dict[str, str]:
    return {
        "name": name,
        "user": unquote(parts.username or "postgres"),
        "password": unquote(parts.password or ""),
        "host": parts.hostname or HOST,
        "port": str(parts.port or 5432),
    }


@contextlib.contextmanager
def pgbouncer(site: Site, servers: Servers, folder: Path) -> Iterator[Database]:
    """Its pool is the bound on sessions, so they are not counted."""
    port = urlsplit(servers.postgresql).port or 5432
    bouncer = servers.private("pgbouncer", lambda: PgBouncer(port))
    with postgresql(site, servers, folder) as database:
        yield Database({**database.values, "host": HOST, "port": str(bouncer.port)})


@contextlib.contextmanager
def mariadb(site: Site, servers: Servers, folder: Path) -> Iterator[Database]:
    server = servers.private("mariadb", PrivateMariaDB)
    name = f"site_{site.name.replace('-', '_')}_{uuid.uuid4().hex[:6]}"
    server.sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        yield Database({"name": name, "host": HOST, "port": str(server.port)}, MARIADB_SESSIONS)
    finally:
        server.sql(f"DROP DATABASE {name}")


@contextlib.contextmanager
def sqlite(site: Site, servers: Servers, folder: Path) -> Iterator[Database]:
    yield Database({})


# --- brokers ----------------------------------------------------------------------------------------------------------


class Broker:
    """A site's broker: the values for its settings. Its methods are the faults that it can be given."""

    def __init__(self, values: dict[str, str], queue: str) -> None:
        self.values = {"queue": queue, **values}
        self.queue = queue

    def delete_queue(self) -> None:
        """The queue is gone with its messages, those that a worker has not taken yet."""
        raise NotImplementedError


def _queue(site: Site) -> str:
    """Sites of one run share a broker, as projects of one company do: each has a queue of its own."""
    return f"site-{site.name}-{os.getpid()}-{uuid.uuid4().hex[:4]}"


class Rabbitmq(Broker):
    def __init__(self, url: str, queue: str, values: dict[str, str] | None = None) -> None:
        super().__init__({"broker": url, **(values or {})}, queue)
        self._url = url

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        with kombu.Connection(self._url, connect_timeout=5) as connection:
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
    broker = Rabbitmq(servers.rabbitmq, _queue(site))
    try:
        yield broker
    finally:
        broker.drop()


@contextlib.contextmanager
def rabbitmq_tls(site: Site, servers: Servers, folder: Path) -> Iterator[Broker]:
    """A private broker with a certificate of an authority that is made for it. Faults go to its plain port."""
    server = PrivateRabbitMQ()
    port = free_port()
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*request, *files], cwd=server.dir, check=True, capture_output=True, timeout=60)
    with (server.dir / "rabbitmq.conf").open("a") as configuration:
        configuration.write(f"listeners.ssl.1 = {HOST}:{port}\n")
        for option, file in (("cacertfile", "cert.pem"), ("certfile", "cert.pem"), ("keyfile", "key.pem")):
            configuration.write(f"ssl_options.{option} = {server.dir / file}\n")
        configuration.write("ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\n")
    with server:
        yield Rabbitmq(server.url, _queue(site), {"port_tls": str(port), "authority": str(server.dir / "cert.pem")})


class Redis(Broker):
    def __init__(self, server: PrivateRedis, queue: str) -> None:
        super().__init__({"broker": f"redis://{HOST}:{server.port}/0"}, queue)
        self._server = server

    def delete_queue(self) -> None:
        self._server.command("DEL", self.queue)

    def flush(self) -> None:
        """FLUSHDB: what waits, what a worker has taken, and the bindings."""
        self._server.command("FLUSHDB")

    def stop_for_some_seconds(self) -> None:
        """SIGSTOP: it accepts connections and answers nothing."""
        self._server.pause()
        timer = threading.Timer(STOPPED_SECONDS, self._server.resume)
        timer.daemon = True
        timer.start()


@contextlib.contextmanager
def redis(site: Site, servers: Servers, folder: Path) -> Iterator[Broker]:
    with PrivateRedis() as server:
        yield Redis(server, _queue(site))


class Filesystem(Broker):
    def __init__(self, folder: Path, queue: str) -> None:
        super().__init__({}, queue)
        self._folder = folder

    def delete_queue(self) -> None:
        for message in (self._folder / "messages").glob(f"*{self.queue}*"):
            with contextlib.suppress(FileNotFoundError):
                message.unlink()


@contextlib.contextmanager
def filesystem(site: Site, servers: Servers, folder: Path) -> Iterator[Broker]:
    yield Filesystem(folder, _queue(site))


@contextlib.contextmanager
def memory(site: Site, servers: Servers, folder: Path) -> Iterator[Broker]:
    yield Broker({}, _queue(site))


DATABASES = {"postgresql": postgresql, "pgbouncer": pgbouncer, "mariadb": mariadb, "sqlite": sqlite}
BROKERS = {
    "rabbitmq": rabbitmq,
    "rabbitmq-tls": rabbitmq_tls,
    "redis": redis,
    "filesystem": filesystem,
    "memory": memory,
}
