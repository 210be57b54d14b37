"""Redis stopped, killed, flushed, silent, full, read-only. It confirms nothing, and a restart forgets everything."""

from __future__ import annotations

from qa.chaos.faults import Strike, fault
from qa.chaos.faults.messages import wait_for_messages
from qa.chaos.world import World


@fault("Redis stopped", "broker", "redis")
def redis_stopped(world: World, strike: Strike) -> None:
    strike.now(world, "redis")
    world.broker.server.stop()
    strike.last(0.0, 3.0)
    world.broker.server.start()


@fault("Redis killed", "broker", "redis")
def redis_killed(world: World, strike: Strike) -> None:
    strike.now(world, "redis")
    world.broker.server.kill9()
    world.broker.server.start()


@fault("Redis: FLUSHDB", "broker", "redis")
def redis_flushed(world: World, strike: Strike) -> None:
    """Every message is gone, those that workers have taken and not acknowledged too; connections stay."""
    wait_for_messages(world)
    strike.now(world, "redis")
    world.broker.server.command("FLUSHALL")


@fault("Redis silent", "broker", "redis")
def redis_silent(world: World, strike: Strike) -> None:
    """Stopped by SIGSTOP: connections stay open, new ones are accepted, nothing is answered."""
    strike.now(world, "redis")
    world.broker.server.pause()
    try:
        strike.last(1.0, 8.0)
    finally:
        world.broker.server.resume()


@fault("Redis closes its connections", "broker", "redis")
def redis_closes_connections(world: World, strike: Strike) -> None:
    strike.now(world, "redis")
    for kind in ("normal", "pubsub"):
        world.broker.server.command("CLIENT", "KILL", "TYPE", kind)


@fault("Redis full", "broker", "redis")
def redis_full(world: World, strike: Strike) -> None:
    """Each write is answered with an error (OOM), as where maxmemory is reached and the policy is noeviction."""
    _set_for_a_time(world, strike, "maxmemory")


@fault("Redis reads only", "broker", "redis")
def redis_reads_only(world: World, strike: Strike) -> None:
    """As a primary that has lost its replicas: NOREPLICAS for each write."""
    _set_for_a_time(world, strike, "min-replicas-to-write")


def _set_for_a_time(world: World, strike: Strike, setting: str) -> None:
    """The setting is 1, and then 0 again, its default."""
    strike.now(world, "redis")
    world.broker.server.command("CONFIG", "SET", setting, "1")
    try:
        strike.last(1.0, 4.0)
    finally:
        world.broker.server.command("CONFIG", "SET", setting, "0")
