"""redis-py: the sockets of a pool of connections. Nothing here imports it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reliable_jobs.compat.register import Library

REDIS = Library("redis-py", "redis", tried="4.6 to 8.1", optional=True)


@REDIS.undocumented(
    "ConnectionPool._in_use_connections",
    "ConnectionPool._available_connections",
    inside="redis.connection:ConnectionPool.reset",
    tests=["test_consuming"],
)
@REDIS.undocumented(
    "Connection._sock",
    inside="redis.connection:AbstractConnection.disconnect",
    tests=["test_consuming"],
)
def sockets_of(pool: Any) -> Iterator[Any]:
    """The sockets of a pool's connections: shut, they make what waits on them fail, and Celery reconnects."""
    # A pool of another class (a project's) may have neither.
    for used in (*getattr(pool, "_in_use_connections", ()), *getattr(pool, "_available_connections", ())):
        yield getattr(used, "_sock", None)
