"""kombu: a connection's state without connecting, what Celery asks of a producer, and accepted content types."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from reliable_jobs.compat import redis
from reliable_jobs.compat.register import Library

KOMBU = Library("kombu", "kombu", tried="5.5 to 5.7")

with KOMBU.importing():
    from kombu.serialization import prepare_accept_content


@KOMBU.undocumented("Connection._connection", at="kombu.connection:Connection._connection", tests=["test_consuming"])
def live_connection(connection: Any) -> Any:
    """The transport's connection that a kombu connection uses at the moment, None without one: the public attribute
    would make kombu connect. A consumer has no kombu connection while it connects anew."""
    return None if connection is None else connection._connection


@KOMBU.undocumented(
    "virtual.Transport.channels",
    inside="kombu.transport.virtual.base:Transport.__init__",
    tests=["test_consuming"],
)
@KOMBU.undocumented(
    "redis.Channel._pool",
    "redis.Channel._async_pool",
    inside="kombu.transport.redis:Channel._disconnect_pools",
    rare=True,
    tests=["test_consuming"],
)
def sockets_of(transport: Any) -> Iterator[Any]:
    """The sockets of a virtual transport's connections: Redis has pools of connections for each channel."""
    for channel in list(transport.channels or ()):
        for pool in (getattr(channel, "_pool", None), getattr(channel, "_async_pool", None)):
            if pool is not None:
                yield from redis.sockets_of(pool)


@KOMBU.undocumented(
    "Connection._reraise_as_library_errors",
    at="kombu.connection:Connection._reraise_as_library_errors",
    tests=["test_render", "test_canvas"],
)
class NoConnection:
    """Stands where Celery expects the connection of the producer that it publishes with. Its own errors are none.

    Celery 5.7 also reads the classes of recoverable errors.
    """

    connection_errors: tuple[type[Exception], ...] = ()
    channel_errors: tuple[type[Exception], ...] = ()
    recoverable_connection_errors: tuple[type[Exception], ...] = ()
    recoverable_channel_errors: tuple[type[Exception], ...] = ()

    @contextlib.contextmanager
    def _reraise_as_library_errors(self) -> Iterator[None]:
        yield


@KOMBU.undocumented(
    "serialization.prepare_accept_content",
    at="kombu.serialization:prepare_accept_content",
    takes=("content_types",),
    tests=["test_bundle", "test_result_text"],
)
def content_types(accepted: Iterable[str]) -> set[str]:
    """The content types behind the names of ``accept_content``, as a worker reads that setting."""
    return set(prepare_accept_content(accepted))
