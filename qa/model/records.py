"""What the model knows of each job, and of each delivery on its way."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from qa.model import jobs
from qa.model.actors import Actor
from qa.model.broker import Message


@dataclasses.dataclass
class Known:
    """What the model knows of one job."""

    number: int
    kind: str
    key: str | None = None
    #: Whose follow-up it is: the parent's id and generation.
    of: str = ""
    cancelled: bool = False
    pruned: bool = False
    #: By generation, which is the number of requeues: claims committed, bodies begun and killed; rescues.
    killed: Counter[int] = dataclasses.field(default_factory=Counter)
    rescues: Counter[int] = dataclasses.field(default_factory=Counter)
    #: Deliveries of messages that do not tell of an earlier run; first runs that were killed.
    fresh: int = 0
    killed_uncounted: int = 0
    #: Database sessions ended under it.
    disconnects: int = 0
    #: Effects of generations that are over: they never change again.
    past: dict[int, int] = dataclasses.field(default_factory=dict)
    #: The row when it was last seen settled.
    final: Any = None


@dataclasses.dataclass
class Run:
    """One delivery on its way."""

    actor: Actor
    message: Message
    node: str
    #: Its body has begun.
    in_body: bool = False
    #: Its database session was ended.
    disconnected: bool = False
    generation: int = 0
    #: The run as the app knows it, for the heartbeat.
    inner: Any = None

    @property
    def atomic(self) -> bool:
        return self.message.going.headers["task"] == jobs.atomic.name

    @property
    def reported(self) -> bool:
        return self.actor.at in ("committed", "ack")
