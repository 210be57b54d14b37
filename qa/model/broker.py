"""The model's broker: a list. It may lose, copy, reorder and redeliver whatever was published, at the model's wish."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kombu

from qa.model.actors import Killed, current
from reliable_jobs.dispatch import publisher as publisher_module
from reliable_jobs.dispatch.answers import BrokerTimeout, Confirms, Depth
from reliable_jobs.message.row_to_message import HEADER, Outgoing
from tests.celery_app import app

#: How it takes a batch: confirms it; is not there; takes it and says nothing; refuses each message.
MOODS = ("up", "down", "silent", "nacks")


@dataclasses.dataclass
class Message:
    """One copy of a message."""

    job: uuid.UUID
    going: Outgoing
    redelivered: bool = False

    @property
    def pointer(self) -> dict[str, Any]:
        return self.going.headers[HEADER]

    @property
    def fresh(self) -> bool:
        """Whether nothing about it tells that an earlier one may have been run."""
        return not self.redelivered and self.pointer["send"] <= 1

    def as_received(self) -> kombu.Message:
        going = self.going
        return kombu.Message(
            body=going.body,
            content_type=going.content_type,
            content_encoding=going.content_encoding,
            headers=dict(going.headers),
            properties=dict(going.properties),
            delivery_info={"exchange": "", "routing_key": going.queue, "redelivered": self.redelivered},
            accept=["application/json"],
        )


@dataclasses.dataclass(frozen=True)
class Published:
    """What was published when, for the bounds on copies."""

    job: uuid.UUID
    send: int
    at: datetime.datetime
    confirmed: bool
    #: The row's when it was sent: another one means another waiting.
    epoch: int


class Broker:
    """Stands where the process's publisher stands."""

    def __init__(self, now: Callable[[], datetime.datetime], epoch_of: Callable[[uuid.UUID], int]) -> None:
        self.app, self._now, self._epoch_of = app, now, epoch_of
        self.mood = "up"
        self.ready: list[Message] = []
        self.history: list[Published] = []
        self.ever: list[Outgoing] = []
        self.breaker_open = False
        self._answered_at: datetime.datetime | None = None
        #: As for a process that has seen no outage. A sweeper that has sends fewer copies, which breaks nothing.
        self.back_for = math.inf
        #: Workers that consume its queues. What a delivery has taken is prefetched, and not ready any more.
        self.consumers = 1

    def publish(self, messages: Sequence[Outgoing], timeout: float | None = None) -> Confirms:
        actor = current()
        if actor is not None and actor.dead:
            raise Killed
        confirms = Confirms()
        if self.mood == "down":
            self._answered_at = None
            confirms.error = ConnectionRefusedError("the model's broker is away")
            return confirms
        for message in messages:
            arrives, confirmed = self.mood in ("up", "silent"), self.mood == "up"
            send, epoch = message.headers[HEADER]["send"], self._epoch_of(message.id)
            self.history.append(Published(message.id, send, self._now(), confirmed, epoch))
            if arrives:
                self.ready.append(Message(message.id, message))
                self.ever.append(message)
            if confirmed:
                confirms.confirmed.add(message.id)
            elif arrives:
                confirms.error = BrokerTimeout("not confirmed in time")
            else:
                confirms.nacked.add(message.id)
        if messages:
            self._answered_at = None if confirms.error is not None else self._now()
        return confirms

    @property
    def answered_lately(self) -> bool:
        trusted = datetime.timedelta(seconds=publisher_module.TRUSTED)
        return self._answered_at is not None and self._now() - self._answered_at < trusted

    def reachable(self, timeout: float = 5.0) -> bool:
        return self.mood != "down"

    def depths(self, queues: Sequence[str], timeout: float = 2.0) -> dict[str, Depth]:
        if self.mood in ("down", "silent"):
            return {}
        ready = Counter(message.going.queue for message in self.ready)
        return {queue: Depth(ready=ready[queue], consumers=self.consumers) for queue in queues}

    def close(self) -> None:
        pass

    @contextlib.contextmanager
    def in_mood(self, mood: str) -> Iterator[None]:
        self.mood = mood
        try:
            yield
        finally:
            self.mood = "up"

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        with publisher_module._publishers_lock:
            before = publisher_module._publishers.pop(id(app), None)
            publisher_module._publishers[id(app)] = self  # type: ignore[assignment]
        try:
            yield
        finally:
            with publisher_module._publishers_lock:
                publisher_module._publishers.pop(id(app), None)
                if before is not None:
                    publisher_module._publishers[id(app)] = before
