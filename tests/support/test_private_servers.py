"""The servers that other tests break must themselves start, break and go away as they say."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import amqp
import pytest

from tests.support.private_servers import (
    HOST,
    CuttableProxy,
    PgBouncer,
    PrivateMariaDB,
    PrivatePostgres,
    PrivateRabbitMQ,
    PrivateRedis,
    Server,
    ServerFailed,
    ServerMissing,
    amqp_auth,
    free_port,
    postgres_auth,
    wait_until,
)

psycopg = pytest.importorskip("psycopg")

pytestmark = pytest.mark.servers

AnyServer = TypeVar("AnyServer", bound=Server)


def started(kind: Callable[..., AnyServer], *arguments: Any) -> Iterator[AnyServer]:
    try:
        server = kind(*arguments)
    except ServerMissing as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))
    with server:
        yield server
    assert not server.dir.exists()
    assert not server.running


@pytest.fixture(scope="module")
def postgres() -> Iterator[PrivatePostgres]:
    yield from started(PrivatePostgres)


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[PrivateRabbitMQ]:
    yield from started(PrivateRabbitMQ)


@pytest.fixture(scope="module")
def mariadb() -> Iterator[PrivateMariaDB]:
    yield from started(PrivateMariaDB)


@pytest.fixture(scope="module")
def redis() -> Iterator[PrivateRedis]:
    yield from started(PrivateRedis)


@pytest.fixture
def pgbouncer(postgres: PrivatePostgres) -> Iterator[PgBouncer]:
    yield from started(PgBouncer, postgres.port)


def publish(rabbitmq: PrivateRabbitMQ, queue: str) -> None:
    with amqp.Connection(f"{HOST}:{rabbitmq.port}", confirm_publish=True, read_timeout=5) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, auto_delete=False)
        channel.basic_publish(amqp.Message("x", delivery_mode=2), routing_key=queue)


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill9"])
def test_postgres_keeps_what_was_committed_and_drops_the_rest(postgres: PrivatePostgres, mode: str) -> None:
    url = postgres.url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE kept_{mode} (n int)")
        connection.execute(f"INSERT INTO kept_{mode} VALUES (1)")

    open_one = psycopg.connect(url)
    open_one.execute(f"INSERT INTO kept_{mode} VALUES (2)")
    first_pid = postgres.pid
    if mode == "kill9":
        postgres.kill9()
        assert not postgres.answers()
        postgres.start()
    else:
        postgres.restart(mode)
    with pytest.raises(psycopg.OperationalError):
        open_one.execute("SELECT 1")
    open_one.close()

    assert postgres.pid != first_pid
    assert postgres.url == url
    with psycopg.connect(url) as connection:
        assert connection.execute(f"SELECT array_agg(n) FROM kept_{mode}").fetchone() == ([1],)


def test_postgres_limits_its_connections(postgres: PrivatePostgres) -> None:
    few = {"superuser_reserved_connections": "0", "max_wal_senders": "0"}
    with PrivatePostgres(max_connections=5, settings=few) as small, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(psycopg.connect(small.url))
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            psycopg.connect(small.url)


@pytest.mark.soak  # other tests use it, and would be red
def test_rabbitmq_keeps_persistent_messages_over_stop_and_start(rabbitmq: PrivateRabbitMQ) -> None:
    publish(rabbitmq, "kept")
    rabbitmq.stop()
    assert not rabbitmq.answers()
    rabbitmq.start()
    assert rabbitmq.depth("kept") == 1


@pytest.mark.soak  # other tests use it, and would be red
def test_rabbitmq_comes_back_after_being_killed(rabbitmq: PrivateRabbitMQ) -> None:
    publish(rabbitmq, "killed")
    rabbitmq.sync()
    rabbitmq.kill9()
    assert not rabbitmq.answers()
    rabbitmq.start()
    assert rabbitmq.depth("killed") == 1


def test_rabbitmq_wiped_has_forgotten_everything(rabbitmq: PrivateRabbitMQ) -> None:
    publish(rabbitmq, "wiped")
    rabbitmq.wipe()
    with pytest.raises(amqp.NotFound):
        rabbitmq.depth("wiped")


def test_rabbitmq_queue_purged_and_deleted(rabbitmq: PrivateRabbitMQ) -> None:
    publish(rabbitmq, "purged")
    assert rabbitmq.purge_queue("purged") == 1
    assert rabbitmq.depth("purged") == 0
    rabbitmq.delete_queue("purged")
    with pytest.raises(amqp.NotFound):
        rabbitmq.depth("purged")


@pytest.mark.soak  # other tests use it, and would be red
def test_rabbitmq_memory_alarm_blocks_publishers_until_cleared(rabbitmq: PrivateRabbitMQ) -> None:
    said: list[str] = []
    connection = amqp.Connection(
        f"{HOST}:{rabbitmq.port}",
        on_blocked=lambda reason: said.append("blocked"),
        on_unblocked=lambda: said.append("unblocked"),
    )
    with connection:
        channel = connection.channel()
        channel.queue_declare("alarmed")

        def heard(word: str) -> bool:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
            return said[-1:] == [word]

        def publishes() -> bool:
            channel.basic_publish(amqp.Message("x"), routing_key="alarmed")
            return True

        rabbitmq.set_memory_alarm(True)
        try:
            # The server blocks who publishes while the alarm is on, and it may come after the first message.
            wait_until(lambda: publishes() and heard("blocked"), 30, "connection.blocked")
        finally:
            rabbitmq.set_memory_alarm(False)
        wait_until(lambda: heard("unblocked"), 30, "connection.unblocked")


def test_rabbitmq_login_is_told_from_a_refusal_and_from_silence(rabbitmq: PrivateRabbitMQ) -> None:
    assert amqp_auth(HOST, rabbitmq.port) == "ok"
    assert amqp_auth(HOST, rabbitmq.port, "guest", "wrong") == "refused"
    assert amqp_auth(HOST, free_port()) == ""


@pytest.mark.parametrize("end", ["restart", "kill9"])
def test_mariadb_keeps_what_was_committed(mariadb: PrivateMariaDB, end: str) -> None:
    mariadb.sql(f"CREATE DATABASE {end}; CREATE TABLE {end}.kept (n int); INSERT INTO {end}.kept VALUES (1)")
    mariadb.kill9() if end == "kill9" else mariadb.stop()
    assert not mariadb.answers()
    mariadb.start()
    assert mariadb.sql("SELECT n FROM kept", database=end) == "1\n"
    with pytest.raises(ServerFailed, match="doesn't exist"):
        mariadb.sql("SELECT n FROM missing", database=end)


def test_redis_forgets_unless_it_is_durable(redis: PrivateRedis) -> None:
    redis.command("LPUSH", "queue", "a", "b")
    assert redis.depth("queue") == 2
    redis.kill9()
    assert not redis.answers()
    redis.start()
    assert redis.depth("queue") == 0
    with PrivateRedis(durable=True) as durable:
        durable.command("SET", "key", "kept")
        durable.kill9()
        durable.start()
        assert durable.command("GET", "key") == "kept"
        with pytest.raises(ServerFailed, match="WRONGTYPE"):
            durable.command("LLEN", "key")


def test_redis_paused_accepts_and_answers_nothing(redis: PrivateRedis) -> None:
    redis.pause()
    assert not redis.answers()
    redis.resume()
    assert redis.answers()


def test_pgbouncer_hands_sessions_on_and_comes_back(pgbouncer: PgBouncer) -> None:
    for harm in (pgbouncer.stop, pgbouncer.kill9):
        with psycopg.connect(pgbouncer.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            harm()
            assert not pgbouncer.answers()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        pgbouncer.start()


def test_proxy_passes_cuts_and_refuses(rabbitmq: PrivateRabbitMQ) -> None:
    with CuttableProxy(rabbitmq.port) as proxy:
        assert proxy.url(rabbitmq.url) == f"amqp://guest:guest@{HOST}:{proxy.port}//"
        assert amqp_auth(HOST, proxy.port) == "ok"

        connection = amqp.Connection(f"{HOST}:{proxy.port}", read_timeout=5)
        connection.connect()
        channel = connection.channel()
        channel.queue_declare("through-the-proxy")
        proxy.cut()
        with pytest.raises(OSError, match=r"closed|reset|Broken pipe"):
            channel.queue_declare("through-the-proxy")
        connection.collect()
        assert proxy.links == 0

        proxy.refuse(True)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, proxy.port), timeout=5)
        proxy.refuse(False)
        assert amqp_auth(HOST, proxy.port) == "ok"


def test_proxy_blackholes_both_directions_and_hides_the_closing(postgres: PrivatePostgres) -> None:
    with CuttableProxy(postgres.port) as proxy:
        session = psycopg.connect(proxy.url(postgres.url), autocommit=True)
        row = session.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        proxy.blackhole(True)
        assert postgres_auth(HOST, proxy.port) == ""
        session.close()

        with psycopg.connect(postgres.url, autocommit=True) as watcher:
            half_open = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            assert watcher.execute(half_open, row).fetchone() == (1,)
            proxy.blackhole(False)
            assert postgres_auth(HOST, proxy.port) == "ok"
            assert watcher.execute(half_open, row).fetchone() == (1,)
            proxy.cut()
            wait_until(lambda: watcher.execute(half_open, row).fetchone() == (0,), 10, "backend ended by the cut")


def test_nothing_is_left_behind(postgres: PrivatePostgres) -> None:
    with PrivatePostgres() as server:
        pid = server.pid
        assert server.dir.exists()
    assert not server.dir.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
