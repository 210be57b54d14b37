"""From a call of ``apply_async`` to the message columns of a row.

Celery itself renders: ``apply_async(producer=Capture())`` makes it do routing, headers, canvas and
``before_task_publish``, and hand the finished message to :meth:`Capture.publish` instead of a broker. ``producer=`` is
a documented option of ``Task.apply_async``. Celery's versions differ in what they use of the object, so it has all that
a kombu producer without a broker can have; tests/message/test_render.py and tests/enqueue/test_canvas.py pin it.
"""

from __future__ import annotations

import math
import operator
import struct
from typing import Any

from amqp.basic_message import Message
from amqp.exceptions import FrameSyntaxError
from amqp.serialization import dumps as amqp_dumps
from celery.exceptions import SoftTimeLimitExceeded
from kombu import Exchange, Queue
from kombu.compression import compress
from kombu.exceptions import EncodeError, SerializerNotInstalled
from kombu.serialization import dumps
from kombu.utils import json as kombu_json

from reliable_jobs.compat.kombu import NoConnection
from reliable_jobs.conf import settings
from reliable_jobs.enqueue import announced, explain
from reliable_jobs.errors import InvalidOption, UnserialisableArguments
from reliable_jobs.message import debts
from reliable_jobs.message.row_to_message import (
    ENVELOPE_VERSION,
    PICKLE,
    USUAL_HEADERS,
    Debt,
    Rendered,
    as_uuid,
    foreign_id,
)

#: How Celery would have published (dispatch/publisher.py has its own answers), and what is in the headers already.
_NOT_PROPERTIES = (
    *("retry", "retry_policy", "timeout", "confirm_timeout", "mandatory", "immediate", "expiration"),
    *("argsrepr", "kwargsrepr"),
)
#: AMQP's types of the properties that a caller may set.
_PROPERTIES = {name: kind for name, kind in Message.PROPERTIES if name != "application_headers"}
#: Headers and properties travel in one frame, of 131,072 bytes unless broker and client agree on less; some of them are
#: added at the send.
MAX_HEADER_BYTES = 131_072 - 2048
#: Of a body that holds results: a chain's next step, a chord's body. RabbitMQ 4 takes no larger message.
MAX_FOLLOWING_BYTES = 16 * 1024 * 1024 - MAX_HEADER_BYTES
_DELIVERY_MODES = {"transient": 1, "persistent": 2}


class Capture:
    """A producer that keeps the task message instead of sending it."""

    #: Read by Celery in eager mode to choose a serializer; None means "the configured one".
    serializer = None
    channel = None

    def __init__(self, *, relay_only: bool = False) -> None:
        #: The task is not a reliable one: what Celery would send travels as it is.
        self.relay_only = relay_only
        self.rendered: Rendered | None = None
        #: As Celery gave it: arguments, keyword arguments, and what is to follow.
        self.body: Any = None
        self.serialised_by: str | None = None
        #: Whether admin pages must show the message's argsrepr instead of its arguments.
        self.sensitive = False
        #: Whether it is called with the results of jobs, which have a limit of their own: MAX_RESULT_BYTES.
        self.follows = False
        self.connection = NoConnection()

    def revive(self, channel: Any) -> None:
        """Celery 5.7 calls this between two attempts to publish a callback."""

    def publish(
        self,
        body: Any,
        *,
        exchange: Any = None,
        routing_key: str | None = None,
        serializer: str | None = None,
        compression: str | None = None,
        delivery_mode: Any = None,
        declare: Any = None,
        headers: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Keep the message. A second call is the ``task-sent`` event of ``task_send_sent_event``: it belongs to the
        confirmed dispatch and is dropped here.

        Raises:
            UnserialisableArguments, JobTooLarge, InvalidOption: with nothing written.
        """
        if self.rendered is not None:
            return
        headers = dict(headers or {})
        if "task" not in headers:
            raise InvalidOption(
                "task_protocol = 1: its messages have no headers, which point to the row. Use Celery's default, 2."
            )
        debt = _debt(headers, body)
        if debt is not None:
            body = (*body[:2], announced.shortened(debt, body[2]))
        self.body, self.serialised_by = body, serializer
        if serializer in PICKLE and not self.relay_only:
            raise InvalidOption(
                f"{headers.get('task')}: the pickle serializer is refused, a forged message could run any code. "
                "Use json (the default), or msgpack or yaml."
            )
        try:
            content_type, content_encoding, data = dumps(body, serializer=serializer)
        except SerializerNotInstalled as error:
            raise InvalidOption(
                f"{headers.get('task')}: the serializer {serializer!r} is not installed. Use json (the default), or "
                "install what it needs (msgpack, PyYAML)."
            ) from error
        except (EncodeError, TypeError, ValueError) as error:
            raise explain.unserialisable(headers.get("task"), body, serializer, error) from error
        payload = data.encode() if isinstance(data, str) else data
        if content_type == "application/json" and b'"__type__"' in payload:
            check_readable(headers.get("task"), payload)
        passed_on = self.follows or self.relay_only
        if len(payload) > (MAX_FOLLOWING_BYTES if passed_on else settings.MAX_PAYLOAD_BYTES):
            raise explain.too_large(headers.get("task"), body, serializer, len(payload), passed_on)
        if compression:
            payload, headers["compression"] = compress(payload, compression)
        for option in _NOT_PROPERTIES:
            options.pop(option, None)
        if delivery_mode is not None:
            options["delivery_mode"] = _DELIVERY_MODES.get(delivery_mode, delivery_mode)
        priority = _priority(headers.get("task"), options.pop("priority", None))
        queue = next((entity.name for entity in declare or () if isinstance(entity, Queue)), None) or routing_key or ""
        queue = _name(headers.get("task"), "queue", queue)
        envelope: dict[str, Any] = {
            "v": ENVELOPE_VERSION,
            "exchange": exchange.name if isinstance(exchange, Exchange) else exchange or "",
            "routing_key": routing_key or "",
            "headers": _unusual(headers),
            "properties": {
                key: value for key, value in options.items() if value is not None and key != "correlation_id"
            },
        }
        if self.sensitive:
            envelope["sensitive"] = True
        text = _envelope_text(headers.get("task"), envelope)
        self.rendered = Rendered(
            task=headers["task"],
            queue=queue,
            priority=priority,
            payload=payload,
            content_type=content_type,
            content_encoding=content_encoding,
            envelope=text,
            root_id=as_uuid(headers.get("root_id")),
            parent_id=as_uuid(headers.get("parent_id")),
            debt=debt,
        )


def _debt(headers: dict[str, Any], body: Any) -> Debt | None:
    """The group that the row is to owe: one of ours."""
    if not isinstance(body, tuple) or len(body) < 3 or not (body[2].get("chord") or body[2].get("chain")):
        return None
    found = debts.of_message(headers, body[2])
    return found if found is not None and announced.is_ours(found) else None


def _priority(task: Any, value: Any) -> int | None:
    """Any whole number, an IntEnum's member too, that AMQP takes as a priority."""
    if value is None:
        return None
    number = operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else -1
    if not 0 <= number <= 255:
        raise InvalidOption(f"{task}: priority={value!r} must be a whole number from 0 to 255.")
    return number


def _envelope_text(task: Any, envelope: dict[str, Any]) -> str:
    """The envelope as JSON.

    Raises:
        UnserialisableArguments: a broker could not take it. RabbitMQ closes the whole connection for a NaN or an
            oversized header, and what other jobs have on their way there would be lost with it.
    """
    why = ""
    try:
        text: str = kombu_json.dumps(envelope)
        kombu_json.loads(text)  # refuses what looks like a type of kombu's own and is none
        size = len(amqp_dumps("F", [envelope["headers"]]))
        for name, value in envelope["properties"].items():
            if name in _PROPERTIES:
                size += len(amqp_dumps(_PROPERTIES[name], [value]))
    except (AttributeError, TypeError, ValueError, OverflowError, struct.error, FrameSyntaxError) as error:
        why, cause = str(error), error
    else:
        cause = None
        if size > MAX_HEADER_BYTES:
            why = f"they have {size} bytes, the limit is {MAX_HEADER_BYTES}"
        elif not _is_finite([envelope["headers"], envelope["properties"]]):
            why = "a number is NaN or infinite"
    if why:
        raise UnserialisableArguments(
            f"{task}: a header or publish option can't travel in a message: {why}. "
            "Use text, finite numbers below 2**63, lists and dicts; for large values pass a primary key or URL."
        ) from cause
    return text


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _name(task: Any, option: str, value: Any) -> str:
    """A text, of an Enum's member its value.

    Raises:
        InvalidOption: AMQP's short strings have no more bytes than these, and the database takes no NUL.
    """
    if not isinstance(value, str) or "\0" in value or len(value.encode("utf-8", "replace")) > 255:
        raise InvalidOption(f"{task}: {option}={value!r} must be a text of at most 255 bytes without NUL.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidOption(f"{task}: {option}={value!r} holds half a character: {error}.") from error
    return str.__str__(value)


def check_readable(task: Any, payload: bytes) -> None:
    """A payload of JSON that holds ``"__type__"``: kombu writes a date as a dict with that key, and a caller's own dict
    of that form would be written and never read again.

    Raises:
        UnserialisableArguments: no worker could decode the payload.
    """
    try:
        kombu_json.loads(payload)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # each type is read by code of its own
        raise UnserialisableArguments(
            f"{task}: an argument holds a dict with the key '__type__', which JSON messages keep for dates, decimals "
            f"and the like, and no worker could read it ({type(error).__name__}: {error}). Use another key."
        ) from error


def _unusual(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers that :func:`outgoing` could not tell from the row's columns."""
    # A caller may have spelled the id otherwise (uuid4().hex), and asks a result backend for it in that way.
    own = str(foreign_id(headers.get("id")))
    usual = {**USUAL_HEADERS, "id": own, "root_id": own, "task": headers.get("task")}
    # Of the same type too: 0 is not False on the wire.
    return {k: v for k, v in headers.items() if k not in usual or usual[k] != v or type(usual[k]) is not type(v)}
