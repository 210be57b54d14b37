"""Messages lost, doubled and shuffled, on either broker."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import amqp

from qa.chaos.faults import Strike, fault
from qa.chaos.servers import QUEUE
from qa.chaos.world import World
from tests.support.private_servers import HOST

#: Messages that one fault doubles or shuffles, at most.
MOST = 40
PATIENCE = 3.0


def wait_for_messages(world: World) -> None:
    deadline = time.monotonic() + PATIENCE
    while world.depth() < 2 and time.monotonic() < deadline:
        time.sleep(0.05)


@fault("messages lost", "broker")
def messages_lost(world: World, strike: Strike) -> None:
    wait_for_messages(world)
    strike.now(world, QUEUE)
    lost = 0
    if world.site.broker == "redis":
        lost = world.depth()
        world.broker.server.command("DEL", QUEUE)
    else:
        with _queue_may_be_missing():
            lost = world.broker.server.purge_queue(QUEUE)
    strike.target = f"{lost} messages"
    strike.hit = lost > 0


@fault("messages doubled", "broker")
def messages_doubled(world: World, strike: Strike) -> None:
    wait_for_messages(world)
    strike.now(world, QUEUE)
    _publish_again(world, strike, copies=2)


@fault("messages shuffled", "broker")
def messages_shuffled(world: World, strike: Strike) -> None:
    wait_for_messages(world)
    strike.now(world, QUEUE)
    _publish_again(world, strike, copies=1)


@contextlib.contextmanager
def _queue_may_be_missing() -> Iterator[None]:
    """After a wipe nobody may have declared it yet."""
    with contextlib.suppress(amqp.NotFound):
        yield


def _publish_again(world: World, strike: Strike, copies: int) -> None:
    again = _again_in_redis if world.site.broker == "redis" else _again_in_rabbitmq
    taken = again(world, strike, copies)
    strike.target = f"{taken} messages"
    strike.hit = taken >= (1 if copies > 1 else 2)


def _again_in_rabbitmq(world: World, strike: Strike, copies: int) -> int:
    taken: list[Any] = []
    address = f"{HOST}:{world.broker.port}"
    with _queue_may_be_missing(), amqp.Connection(address, connect_timeout=5) as connection:
        channel = connection.channel()
        while len(taken) < MOST and (message := channel.basic_get(QUEUE)) is not None:
            taken.append(message)
        again = taken * copies
        strike.rng.shuffle(again)
        channel.confirm_select()
        for message in again:
            copy = amqp.Message(message.body, channel=channel, **message.properties)
            channel.basic_publish_confirm(copy, routing_key=QUEUE)
        for message in taken:
            channel.basic_ack(message.delivery_tag)
    return len(taken)


def _again_in_redis(world: World, strike: Strike, copies: int) -> int:
    """A message in Redis is a JSON text in a list; its delivery tag is in it, and a copy needs one of its own."""
    redis = world.broker.server
    taken = []
    while len(taken) < MOST and (message := redis.command("RPOP", QUEUE)).startswith("{"):
        taken.append(message)
    again = [(message, copy) for message in taken for copy in range(copies)]
    strike.rng.shuffle(again)
    for message, copy in again:
        redis.command("LPUSH", QUEUE, _as_a_copy(message) if copy else message)
    return len(taken)


def _as_a_copy(message: str) -> str:
    whole = json.loads(message)
    whole["properties"]["delivery_tag"] = str(uuid.uuid4())
    return json.dumps(whole)
