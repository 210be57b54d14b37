"""Servers of a test's own, to be stopped, killed, wiped or cut off without hurting anyone else's.

    with PrivatePostgres() as postgres, PrivateRabbitMQ() as rabbitmq:
        with CuttableProxy(rabbitmq.port) as proxy:
            url = proxy.url(rabbitmq.url)

Everything lives in a temporary directory, listens on 127.0.0.1 only, is waited for by asking it (never by sleeping for
a guessed time), and is gone when the ``with`` block ends. Ports and contents survive a restart. Binaries that are not
installed raise `ServerMissing`. Only the standard library is used, so that `tools/servers.py` can borrow the classes.
"""

from __future__ import annotations

from tests.support.private_servers.handshakes import amqp_auth, postgres_auth
from tests.support.private_servers.mariadb import PrivateMariaDB
from tests.support.private_servers.pgbouncer import PgBouncer
from tests.support.private_servers.postgresql import PrivatePostgres
from tests.support.private_servers.prometheus import PrivatePrometheus
from tests.support.private_servers.proxy import CuttableProxy
from tests.support.private_servers.rabbitmq import PrivateRabbitMQ
from tests.support.private_servers.redis import PrivateRedis
from tests.support.private_servers.server import (
    HOST,
    Server,
    ServerFailed,
    ServerMissing,
    accepts,
    free_port,
    parents,
    wait_until,
)

__all__ = [
    "HOST",
    "CuttableProxy",
    "PgBouncer",
    "PrivateMariaDB",
    "PrivatePostgres",
    "PrivatePrometheus",
    "PrivateRabbitMQ",
    "PrivateRedis",
    "Server",
    "ServerFailed",
    "ServerMissing",
    "accepts",
    "amqp_auth",
    "free_port",
    "parents",
    "postgres_auth",
    "wait_until",
]
