"""py-amqp: its socket without connecting, its open channels, its events, and how large a frame may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reliable_jobs.compat.register import Library

AMQP = Library("py-amqp", "amqp", tried="5.3 to 5.4")


@AMQP.undocumented("Connection._transport", inside="amqp.connection:Connection.__init__", tests=["test_consuming"])
def socket_of(connection: Any) -> Any:
    """The socket of a connection, or None: the public property connects a connection that is closed."""
    return getattr(connection._transport, "sock", None)


@AMQP.undocumented("Connection.channels", inside="amqp.connection:Connection.__init__", tests=["test_consuming"])
def open_channels(connection: Any) -> list[Any]:
    """The open channels of a connection, of which one is asked for a sign of life."""
    channels = list((connection.channels or {}).values())  # None once it is closed
    return [channel for channel in channels if channel is not None and channel.channel_id and channel.is_open]


largest_frame = AMQP.attribute(
    "Connection.frame_max",
    "Bytes in one frame, as negotiated with the broker: the frames of a publish are made here.",
    inside="amqp.connection:Connection.__init__",
    tests=["test_promise_5_outages_cost_time"],
)


@AMQP.undocumented(
    "Channel.events",
    inside="amqp.channel:Channel.__init__",
    tests=["test_promise_5_outages_cost_time"],
)
def call_on(channel: Any, event: str, receiver: Callable[..., Any]) -> None:
    """Have the confirms, nacks and returns of a pipeline told, each as it comes.

    Args:
        event: ``basic_ack``, ``basic_nack`` or ``basic_return``.
    """
    channel.events[event].add(receiver)
