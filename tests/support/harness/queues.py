"""What a stack does with its broker: queues, and messages put there or taken away by hand."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import Any

from kombu import Connection, Producer, Queue

from reliable_jobs.dispatch import publisher as publisher_module
from reliable_jobs.message.row_to_message import HEADER, outgoing
from reliable_jobs.models import Job
from tests.celery_app import app, use_broker


def close_publishers() -> None:
    """Close what every app's publisher of this process has open, before the broker is another one. Left to the garbage
    collector, its sockets would warn in whichever test runs at that moment."""
    with publisher_module._publishers_lock:
        known = list(publisher_module._publishers.values())
        publisher_module._publishers.clear()
    for one in known:
        one.close()


class Queues:
    """The part of a `Stack` that talks to the broker."""

    broker_url: str
    queue: str
    queues: list[str]

    @staticmethod
    def _use_broker(url: str, queue: str) -> None:
        close_publishers()
        use_broker(url, queue)

    @contextlib.contextmanager
    def own_queue(self) -> Iterator[str]:
        """Another queue as the default one for the time of the block: nobody consumes it, nothing has settled in it."""
        before = self.queue
        self.queue = f"rj_{os.getpid()}_{uuid.uuid4().hex[:6]}"
        self._use_broker(self.broker_url, self.queue)
        self.declare()
        try:
            yield self.queue
        finally:
            with contextlib.suppress(Exception), self._channel() as channel:
                channel.queue_delete(self.queue)
            self.queue = before
            self._use_broker(self.broker_url, self.queue)

    @contextlib.contextmanager
    def through(self, broker_url: str) -> Iterator[None]:
        """This process reaches the broker by another address: that of a proxy."""
        self._use_broker(broker_url, self.queue)
        try:
            yield
        finally:
            self._use_broker(self.broker_url, self.queue)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        with Connection(self.broker_url, connect_timeout=5) as connection:
            channel = connection.default_channel
            yield channel

    def declare(self) -> None:
        self.queues.append(self.queue)
        with self._channel() as channel:
            app.amqp.queues[self.queue](channel).declare()

    def depth(self) -> int:
        """Messages that are ready in the queue; 0 where there is no queue."""
        with self._channel() as channel:
            try:
                return int(channel.queue_declare(self.queue, passive=True).message_count)
            except channel.connection.channel_errors:
                return 0

    def purge(self) -> int:
        with self._channel() as channel:
            return int(channel.queue_purge(self.queue))

    def delete_queue(self, name: str | None = None) -> None:
        with self._channel() as channel:
            channel.queue_delete(name or self.queue)

    def take_messages(self) -> list[Any]:
        """Every ready message of the queue, taken off it."""
        with self._channel() as channel:
            queue = Queue(self.queue, channel=channel)
            return list(iter(lambda: queue.get(no_ack=True), None))

    def publish(self, job: Job, *, copies: int = 1, **pointer: Any) -> None:
        """The job's message as it is now, so many times; ``pointer`` changes what it says of itself (its send …)."""
        message = outgoing(Job.objects.get(pk=job.pk), "default")
        message.headers[HEADER].update(pointer)
        with self._channel() as channel:
            producer = Producer(channel, auto_declare=False)
            for _ in range(copies):
                producer.publish(
                    message.body,
                    exchange="",
                    routing_key=self.queue,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers=message.headers,
                    **message.properties,
                )

    def publish_raw(self, body: bytes, content_type: str, headers: dict[str, Any]) -> None:
        with self._channel() as channel:
            Producer(channel, auto_declare=False).publish(
                body,
                exchange="",
                routing_key=self.queue,
                content_type=content_type,
                content_encoding="utf-8",
                headers=headers,
            )
