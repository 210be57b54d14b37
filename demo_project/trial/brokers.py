"""What the demo does to the broker's messages: lose some, deliver others twice. Both are counted one by one."""

from __future__ import annotations

import base64
import dataclasses
import os
import uuid
from pathlib import Path
from typing import Any

from celery import current_app
from django.conf import settings
from kombu import Producer
from kombu.utils.json import dumps, loads

from demo_project import file_broker


@dataclasses.dataclass(frozen=True)
class Victim:
    """A job that something was done to: the name of its task and the order or upload that it is for."""

    task: str
    subject: str

    @classmethod
    def of_message(cls, task: str, body: bytes | str) -> Victim:
        return cls(task.rpartition(".")[2], str(loads(body)[0][0]))


class Broker:
    """The queue of this run. :func:`broker` chooses the kind."""

    def depth(self) -> int:
        raise NotImplementedError

    def wipe(self, most: int) -> list[Victim]:
        """Take up to so many messages out of the queue, oldest first, and forget them."""
        raise NotImplementedError

    def copy(self, most: int) -> int:
        """Put a second copy of up to so many messages into the queue. Returns how many."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of connections."""


class FileBroker(Broker):
    def __init__(self) -> None:
        self.folder = Path(settings.CELERY_BROKER_TRANSPORT_OPTIONS["data_folder_in"])
        self.queue = settings.CELERY_TASK_DEFAULT_QUEUE
        # Bound before any worker starts: kombu's filesystem transport is not made for two first bindings at once.
        with current_app.connection_for_write() as connection:
            current_app.amqp.queues[self.queue](connection.channel()).declare()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*.{self.queue}{file_broker.SUFFIX}"))

    def depth(self) -> int:
        return len(self._files())

    def wipe(self, most: int) -> list[Victim]:
        wiped = []
        for file in self._files()[:most]:
            taken = self.folder / f"wiped-{uuid.uuid4()}"
            try:
                os.rename(file, taken)  # only one can win: a worker that fetches it, or we
            except FileNotFoundError:
                continue
            message = loads(taken.read_text())
            taken.unlink()
            wiped.append(Victim.of_message(message["headers"]["task"], base64.b64decode(message["body"])))
        return wiped

    def copy(self, most: int) -> int:
        copied = 0
        for file in self._files()[:most]:
            try:
                message = loads(file.read_text())
            except FileNotFoundError:
                continue
            message["properties"]["delivery_tag"] = str(uuid.uuid4())
            # Under the original's time, so that the two are fetched together.
            written_at = int(file.name.partition("_")[0])
            file_broker.write_message(str(self.folder), self.queue, dumps(message), written_at)
            copied += 1
        return copied


class ServerBroker(Broker):
    """RabbitMQ, spoken to as a consumer: what it acks without running is lost, what it publishes again is a copy."""

    KEPT = ("correlation_id", "message_id", "priority", "reply_to")

    def __init__(self) -> None:
        self.connection = current_app.connection_for_write()
        channel = self.connection.channel()
        self.producer = Producer(channel, auto_declare=False)
        self.queue = current_app.amqp.queues[settings.CELERY_TASK_DEFAULT_QUEUE](channel)
        self.queue.declare()

    def depth(self) -> int:
        return int(self.queue.queue_declare(passive=True).message_count)

    def _take(self, most: int) -> list[Any]:
        taken = []
        while len(taken) < most and (message := self.queue.get(no_ack=False)) is not None:
            taken.append(message)
        return taken

    def wipe(self, most: int) -> list[Victim]:
        wiped = []
        for message in self._take(most):
            message.ack()
            wiped.append(Victim.of_message(message.headers["task"], message.body))
        return wiped

    def copy(self, most: int) -> int:
        taken = self._take(most)
        for message in taken:
            for _ in range(2):
                self.producer.publish(
                    message.body,
                    exchange="",
                    routing_key=self.queue.name,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers=message.headers,
                    delivery_mode="persistent",
                    **{name: message.properties[name] for name in self.KEPT if name in message.properties},
                )
            message.ack()
        return len(taken)

    def close(self) -> None:
        self.connection.release()


def broker() -> Broker:
    return FileBroker() if settings.CELERY_BROKER_URL.startswith("files:") else ServerBroker()
