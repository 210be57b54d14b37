"""RabbitMQ stopped, killed, wiped, in alarm; its queue deleted."""

from __future__ import annotations

from qa.chaos.faults import Strike, fault
from qa.chaos.faults.messages import wait_for_messages
from qa.chaos.servers import QUEUE
from qa.chaos.world import World


@fault("broker stopped", "broker", "rabbitmq")
def broker_stopped(world: World, strike: Strike) -> None:
    strike.now(world, "rabbitmq")
    world.broker.server.stop()
    strike.last(0.0, 3.0)
    world.broker.server.start()


@fault("broker killed", "broker", "rabbitmq")
def broker_killed(world: World, strike: Strike) -> None:
    strike.now(world, "rabbitmq")
    world.broker.server.kill9()
    world.broker.server.start()


@fault("broker wiped", "broker", "rabbitmq")
def broker_wiped(world: World, strike: Strike) -> None:
    """Every queue and message is gone."""
    wait_for_messages(world)
    strike.now(world, "rabbitmq")
    world.broker.server.wipe()


@fault("broker closes its connections", "broker", "rabbitmq")
def broker_closes_connections(world: World, strike: Strike) -> None:
    strike.now(world, "rabbitmq")
    world.broker.server.ctl("close_all_connections", "chaos")


@fault("memory alarm", "broker", "rabbitmq")
def memory_alarm(world: World, strike: Strike) -> None:
    world.broker.server.set_memory_alarm(True)
    try:
        strike.now(world, "rabbitmq")
        strike.last(1.0, 4.0)
    finally:
        world.broker.server.set_memory_alarm(False)


@fault("disk alarm", "broker", "rabbitmq")
def disk_alarm(world: World, strike: Strike) -> None:
    """RabbitMQ is told to want more free space than any disk has."""
    world.broker.server.ctl("set_disk_free_limit", "1000000GB")
    try:
        strike.now(world, "rabbitmq")
        strike.last(1.0, 4.0)
    finally:
        world.broker.server.ctl("set_disk_free_limit", "1MB")


@fault("queue deleted", "broker", "rabbitmq")
def queue_deleted(world: World, strike: Strike) -> None:
    wait_for_messages(world)
    strike.now(world, QUEUE)
    world.broker.server.delete_queue(QUEUE)
