"""RabbitMQ stopped, killed, wiped, in alarm; its queue deleted; messages lost, doubled and shuffled."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import amqp

from tests.chaos.faults import Strike, fault
from tests.chaos.world import World
from tests.private_servers import HOST

#: Messages that one fault doubles or shuffles, at most.
MOST = 40
PATIENCE = 3.0


@fault("broker stopped", "broker")
def broker_stopped(world: World, strike: Strike) -> None:
    strike.now(world, "rabbitmq")
    world.rabbitmq.stop()
    strike.last(0.0, 3.0)
    world.rabbitmq.start()


@fault("broker killed", "broker")
def broker_killed(world: World, strike: Strike) -> None:
    strike.now(world, "rabbitmq")
    world.rabbitmq.kill9()
    world.rabbitmq.start()


@fault("broker wiped", "broker")
def broker_wiped(world: World, strike: Strike) -> None:
    """Every queue and message is gone."""
    _wait_for_messages(world)
    strike.now(world, "rabbitmq")
    world.rabbitmq.wipe()


@fault("broker closes its connections", "broker")
def broker_closes_connections(world: World, strike: Strike) -> None:
    strike.now(world, "rabbitmq")
    world.rabbitmq.ctl("close_all_connections", "chaos")


@fault("memory alarm", "broker")
def memory_alarm(world: World, strike: Strike) -> None:
    world.rabbitmq.set_memory_alarm(True)
    try:
        strike.now(world, "rabbitmq")
        strike.last(1.0, 4.0)
    finally:
        world.rabbitmq.set_memory_alarm(False)


@fault("disk alarm", "broker")
def disk_alarm(world: World, strike: Strike) -> None:
    """RabbitMQ is told to want more free space than any disk has."""
    world.rabbitmq.ctl("set_disk_free_limit", "1000000GB")
    try:
        strike.now(world, "rabbitmq")
        strike.last(1.0, 4.0)
    finally:
        world.rabbitmq.ctl("set_disk_free_limit", "1MB")


@fault("queue deleted", "broker")
def queue_deleted(world: World, strike: Strike) -> None:
    _wait_for_messages(world)
    strike.now(world, world.stack.queue)
    world.rabbitmq.delete_queue(world.stack.queue)


@fault("messages lost", "broker")
def messages_lost(world: World, strike: Strike) -> None:
    _wait_for_messages(world)
    strike.now(world, world.stack.queue)
    with _queue_may_be_missing():
        strike.target = f"{world.rabbitmq.purge_queue(world.stack.queue)} messages"
    strike.hit = not strike.target.startswith("0 ")


@fault("messages doubled", "broker")
def messages_doubled(world: World, strike: Strike) -> None:
    _wait_for_messages(world)
    strike.now(world, world.stack.queue)
    _publish_again(world, strike, copies=2)


@fault("messages shuffled", "broker")
def messages_shuffled(world: World, strike: Strike) -> None:
    _wait_for_messages(world)
    strike.now(world, world.stack.queue)
    _publish_again(world, strike, copies=1)


def _wait_for_messages(world: World) -> None:
    deadline = time.monotonic() + PATIENCE
    while world.depth() < 2 and time.monotonic() < deadline:
        time.sleep(0.05)


@contextlib.contextmanager
def _queue_may_be_missing() -> Iterator[None]:
    """After a wipe nobody may have declared it yet."""
    with contextlib.suppress(amqp.NotFound):
        yield


def _publish_again(world: World, strike: Strike, copies: int) -> None:
    queue = world.stack.queue
    taken: list[Any] = []
    with _queue_may_be_missing(), amqp.Connection(f"{HOST}:{world.rabbitmq.port}", connect_timeout=5) as connection:
        channel = connection.channel()
        while len(taken) < MOST and (message := channel.basic_get(queue)) is not None:
            taken.append(message)
        again = taken * copies
        strike.rng.shuffle(again)
        channel.confirm_select()
        for message in again:
            copy = amqp.Message(message.body, channel=channel, **message.properties)
            channel.basic_publish_confirm(copy, routing_key=queue)
        for message in taken:
            channel.basic_ack(message.delivery_tag)
    strike.target = f"{len(taken)} messages"
    strike.hit = len(taken) >= (1 if copies > 1 else 2)
