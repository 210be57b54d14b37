"""What the watchdog asks and does below Celery: the broker's queues on a connection of its own, and the sockets of the
worker's process to its broker. Shut, they make whatever waits on them fail, and Celery reconnects.

Celery and kombu have no documented way to do it; tests/worker/test_consuming.py does it with real brokers.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import amqp
from amqp import spec
from celery import Celery
from kombu.transport import virtual

from reliable_jobs.compat.amqp import open_channels, socket_of
from reliable_jobs.compat.kombu import live_connection, sockets_of


def live(connection: Any) -> Any:
    """The transport's connection that a kombu connection uses at the moment, None without one."""
    return live_connection(connection)


def shut(connection: Any) -> int:
    """Shut down the sockets of one connection, as :func:`live` returns it. Returns how many."""
    return _shut(_sockets(connection))


def shut_all() -> int:
    """Shut down the sockets of every broker connection in this process. Returns how many."""
    # Some are known only to the function that waits on them, so the garbage collector is asked.
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), (amqp.Connection, virtual.Transport))]
    return _shut(sock for connection in found for sock in _sockets(connection))


def ask_for_a_sign(connection: Any) -> None:
    """Make the broker answer on a connection without waiting for the answer, where AMQP can. Call it in the thread that
    writes to the connection; :func:`frames_received` then rises."""
    if isinstance(connection, amqp.Connection):
        for channel in open_channels(connection)[:1]:
            channel.send_method(spec.Channel.Flow, "b", (True,))


def frames_received(connection: Any) -> int | None:
    """How many frames the connection has received since it was made; None where that can't be known (not AMQP)."""
    return int(connection.bytes_recv) if isinstance(connection, amqp.Connection) else None


def messages_ready(app: Celery, queues: Iterable[str], timeout: float) -> bool:
    """Whether the broker has messages in one of the queues that it could deliver at once, or lacks such a queue. Asked
    on a new connection. Always False where the transport only estimates (all but AMQP and Redis).

    Raises:
        Exception: the broker did not answer; each transport raises errors of its own.
    """
    with app.connection_for_read(connect_timeout=timeout, heartbeat=0) as connection:
        options = connection.transport_options
        if connection.transport.driver_type == "amqp":
            options.update({"connect_timeout": timeout, "read_timeout": timeout, "write_timeout": timeout})
        elif connection.transport.driver_type == "redis":
            options.update({"socket_connect_timeout": timeout, "socket_timeout": timeout})
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout)
        try:
            for queue in queues if connection.transport.driver_type in ("amqp", "redis") else ():
                try:
                    if connection.channel().queue_declare(queue, passive=True).message_count:
                        return True
                except connection.channel_errors:
                    if connection.transport.driver_type == "amqp":
                        return True  # the queue is gone; elsewhere this means that it is empty
            return False
        finally:
            connection.collect(socket_timeout=0.1)  # close() may wait for an answer


def _sockets(connection: Any) -> Iterator[Any]:
    if isinstance(connection, amqp.Connection):
        yield socket_of(connection)
    elif isinstance(connection, virtual.Transport):
        yield from sockets_of(connection)


def _shut(sockets: Iterable[Any]) -> int:
    done = 0
    for sock in {id(sock): sock for sock in sockets if sock is not None}.values():
        try:
            # A copy of the descriptor: a wrapper (TLS, greenlets) may have a shutdown() that waits, or forgets itself.
            with socket.socket(fileno=os.dup(sock.fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            continue  # closed already
        done += 1
    return done
