"""The frames that we make are those that py-amqp would have written, byte for byte."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import Channel
from amqp.basic_message import Message
from amqp.exceptions import FrameSyntaxError
from amqp.method_framing import frame_writer
from hypothesis import given
from hypothesis import strategies as st

from reliable_jobs.dispatch import amqp_pipeline
from reliable_jobs.message.row_to_message import USUAL_HEADERS, Outgoing

FRAME_MAX = 4096
JOB_ID = uuid.UUID(int=7)


def outgoing(**changes: Any) -> Outgoing:
    values: dict[str, Any] = {
        "id": JOB_ID,
        "queue": "celery",
        "exchange": "",
        "routing_key": "celery",
        "body": b"[[1], {}, {}]",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "headers": {
            **USUAL_HEADERS,
            "id": str(JOB_ID),
            "reliable_jobs": {"content_version": 0, "using": "default", "send": 1},
        },
        "properties": {"message_id": str(JOB_ID), "correlation_id": str(JOB_ID), "delivery_mode": 2},
    }
    return Outgoing(**{**values, **changes})


def by_amqp(message: Outgoing, mandatory: bool = True) -> bytes:
    """What py-amqp's channel and frame writer put on the socket."""
    written = bytearray()
    transport = SimpleNamespace(write=lambda data: written.extend(bytes(data)))
    connection = SimpleNamespace(frame_max=FRAME_MAX, bytes_sent=0)
    connection.frame_writer = frame_writer(connection, transport)
    channel = SimpleNamespace(connection=connection, channel_id=3)
    raw = Message(
        message.body,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        application_headers=message.headers,
        **message.properties,
    )
    arguments = (0, message.exchange, message.routing_key, mandatory, False)
    Channel.send_method(channel, (60, 40), "Bssbb", arguments, raw)
    return bytes(written)


def ours(message: Outgoing, mandatory: bool = True) -> bytes:
    return amqp_pipeline.publication(message, channel=3, frame_max=FRAME_MAX, mandatory=mandatory)


#: With halves of characters too, as a file name may hold them.
texts = st.text(st.characters(), max_size=40) | st.text(st.characters(categories=["Cs"]), max_size=3)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(headers=st.dictionaries(texts, values, max_size=6), body=st.binary(max_size=200), mandatory=st.booleans())
def test_any_headers_and_body(headers: dict[str, Any], body: bytes, mandatory: bool) -> None:
    message = outgoing(headers=headers, body=body)
    assert ours(message, mandatory) == by_amqp(message, mandatory)


@given(
    properties=st.fixed_dictionaries(
        {},
        optional={
            "delivery_mode": st.sampled_from([1, 2]),
            "priority": st.integers(0, 255),
            "correlation_id": texts,
            "reply_to": texts,
            "message_id": texts,
            "timestamp": st.integers(0, 2**40),
            "type": texts,
            "user_id": texts,
            "app_id": texts,
            "unknown_to_amqp": texts,
        },
    ),
    exchange=texts,
    routing_key=texts,
)
def test_any_properties_and_route(properties: dict[str, Any], exchange: str, routing_key: str) -> None:
    message = outgoing(properties=properties, exchange=exchange, routing_key=routing_key)
    assert ours(message) == by_amqp(message)


@pytest.mark.parametrize("size", [0, 1, FRAME_MAX - 8, FRAME_MAX - 7, 3 * FRAME_MAX])
def test_a_body_of_any_size(size: int) -> None:
    message = outgoing(body=bytes(size))
    assert ours(message) == by_amqp(message)


@pytest.mark.parametrize("header", [object(), {1, 2}, 2**64])
def test_what_has_no_amqp_type_is_an_error_as_with_py_amqp(header: Any) -> None:
    message = outgoing(headers={"odd": header})
    with pytest.raises((FrameSyntaxError, ValueError, OverflowError, Exception)) as theirs:
        by_amqp(message)
    with pytest.raises(theirs.type):
        ours(message)
