"""One broker connection: declare, publish, await every confirm.

On AMQP (py-amqp) amqp_pipeline.py publishes. Other transports know no confirms: there a publish that did not raise
counts, and the sweeper makes up for what they lose.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from amqp.exceptions import ConnectionError as AmqpConnectionError
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from kombu import Producer
from kombu.transport.base import Transport

from reliable_jobs.dispatch.amqp_pipeline import Pipeline, time_left
from reliable_jobs.dispatch.answers import UNENCODABLE, BrokerTimeout, Confirms, Depth
from reliable_jobs.message.row_to_message import Outgoing

logger = logging.getLogger(__name__)


def _ends_connection(error: Exception) -> bool:
    """Whether the connection is gone, by the broker's will or without a word; not where the broker is shut down (320)
    or closed the channel alone."""
    if isinstance(error, (BrokerTimeout, *UNENCODABLE)):
        return False
    return isinstance(error, (OSError, AmqpConnectionError)) and getattr(error, "code", None) != 320


def within(timeout: float, transport: Transport, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Transport options that bound each wait on the network. The project's own values win, except on AMQP for
    ``confirm_publish`` (the confirms are awaited here) and ``connect_timeout`` (the time that is left)."""
    options = dict(theirs)
    if transport.driver_name == "py-amqp":
        # connect_timeout bounds each read of the handshake as well (amqp.Connection.connect).
        options.update(confirm_publish=False, connect_timeout=timeout)
        options.setdefault("read_timeout", timeout)
        options.setdefault("write_timeout", timeout)
    elif transport.driver_type == "redis":
        options.setdefault("socket_connect_timeout", timeout)
        options.setdefault("socket_timeout", timeout)
    elif transport.driver_type == "sqs":
        # What kombu hands to botocore, which waits 60 s for each and tries five times. One call connects and reads.
        client = {"connect_timeout": timeout / 2, "read_timeout": timeout / 2, "retries": {"total_max_attempts": 1}}
        options["client-config"] = {**client, **(options.get("client-config") or {})}
    return options


class Link:
    """One broker connection with its channel."""

    def __init__(self, app: Celery, timeout: float) -> None:
        self.app = app
        self.pid = os.getpid()
        self.declared: set[str] = set()
        self.used = False
        self.connection = app.connection_for_write(heartbeat=0, connect_timeout=timeout)
        self.amqp = self.connection.transport.driver_name == "py-amqp"
        self.pipeline: Pipeline | None = None
        self.connection.transport_options = within(
            timeout, self.connection.transport, self.connection.transport_options or {}
        )
        try:
            self.connection.ensure_connection(max_retries=1, interval_start=0, timeout=timeout)
            # The driver's own connection: kombu's quietly reconnects, leaves the old socket open, and would wait on the
            # new one for acks of the old.
            self.raw: Any = self.connection.connection
            self.channel: Any = self._confirming() if self.amqp else self.connection.channel()
        except BaseException:
            self.drop()
            raise

    def _confirming(self) -> Any:
        self.pipeline = Pipeline(self.raw)
        return self.pipeline.channel

    def drop(self) -> None:
        """Let go of the connection without a word to the broker: ``close()`` may wait for ever."""
        if self.pid != os.getpid():
            return
        try:
            self.connection.collect(socket_timeout=0.1)
        except SoftTimeLimitExceeded:
            raise  # the task function's
        except Exception as error:  # whatever a broken connection raises
            logger.debug("A broken connection could not be closed: %r", error)

    def close(self) -> None:
        """Say goodbye to a healthy broker, which would log a warning otherwise; its answer is waited for a second."""
        if self.pid == os.getpid():
            try:
                if self.amqp:
                    self.raw.sock.settimeout(1.0)
                self.connection.release()
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                logger.debug("A connection could not be closed: %r", error)

    def declare(self, name: str) -> None:
        """Declare a queue once per connection, as Celery would. A queue that exists with other arguments will do."""
        if name in self.declared:
            return
        queues = self.app.amqp.queues
        if name and (name in queues or self.app.conf.task_create_missing_queues):
            try:
                queues[name](self.channel).declare()
            except self.connection.channel_errors as error:
                if getattr(error, "code", None) != 406:
                    raise
                self.channel = self._confirming()  # 406 PRECONDITION_FAILED closed the other
        self.declared.add(name)

    def declare_for(self, messages: Sequence[Outgoing]) -> Confirms:
        """Declare the messages' queues. What went wrong stands in the confirms."""
        confirms = Confirms()
        try:
            for message in messages:
                self._declare_for(message, confirms)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            confirms.error = error
        self.used = True
        return confirms

    def publish(self, messages: Sequence[Outgoing], deadline: float) -> Confirms:
        """Publish to queues that have been declared, and wait for the confirms until ``deadline`` (monotonic)."""
        confirms = Confirms()
        try:
            if self.pipeline is not None:
                self.pipeline.publish(messages, deadline, confirms)
            else:
                self._one_by_one(messages, deadline, confirms)
        except SoftTimeLimitExceeded:
            raise  # the task function's, which publishes
        except Exception as error:
            confirms.error = error
            confirms.died = self.amqp and _ends_connection(error)
        self.used = True
        return confirms

    def _declare_for(self, message: Outgoing, confirms: Confirms) -> None:
        try:
            self.declare(message.queue)
        except (*self.connection.channel_errors, *UNENCODABLE):
            # A name that the broker refuses (403 for ``amq.…``) or that can't be written: this message's own fault.
            confirms.unsendable = message.id
            raise

    def probe(self, timeout: float) -> None:
        """On AMQP: have a message confirmed. Only that tells: a broker under its memory alarm lets connections in and
        then says nothing. Without ``mandatory`` RabbitMQ acks what it can't route, so the message goes nowhere.
        Elsewhere nothing is sent: that there is a connection has to do.

        Raises:
            Exception: BrokerTimeout, or the connection's own error.
        """
        if self.pipeline is not None:
            # With a body: a message without one is complete before the alarm holds the connection up, and is confirmed.
            nowhere = Outgoing(uuid.uuid4(), "", "", "reliable_jobs.probe", b"probe", "text/plain", "utf-8", {}, {})
            self.pipeline.publish([nowhere], time.monotonic() + timeout, Confirms(), mandatory=False)
        self.used = True

    def depth(self, queue: str) -> Depth | None:
        """What the broker says of a queue; None where it can't say: no permission, not AMQP."""
        if not self.amqp:
            return None
        channel = self.raw.channel()  # a refusal closes it
        try:
            answer = channel.queue_declare(queue, passive=True)
        except self.connection.channel_errors as error:
            return Depth(ready=0, consumers=0, exists=False) if getattr(error, "code", None) == 404 else None
        finally:
            if channel.is_open:
                channel.close()
        self.used = True
        return Depth(ready=answer.message_count, consumers=answer.consumer_count)

    def _one_by_one(self, messages: Sequence[Outgoing], deadline: float, confirms: Confirms) -> None:
        producer = Producer(self.channel, auto_declare=False)
        for message in messages:
            time_left(deadline)
            properties = {**message.properties}
            producer.publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                headers=message.headers,
                delivery_mode=properties.pop("delivery_mode"),
                priority=properties.pop("priority", 0),
                **properties,
            )
            confirms.confirmed.add(message.id)
