"""Processes killed, stopped, told to end, and given a wrong time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from qa.chaos.faults import Strike, fault
from qa.chaos.members import Member
from qa.chaos.world import World

#: How long a fault waits for a target that has something to lose, in seconds.
PATIENCE = 6.0


@fault("producer killed", "producers")
def producer_killed(world: World, strike: Strike) -> None:
    member = world.choose(strike.rng, world.by_role("producer"), world.has_open_order, PATIENCE)
    strike.now(world, member.name)
    member.process.kill9()
    strike.hit = world.has_open_order(member)


@fault("worker killed with its children", "workers")
def worker_killed(world: World, strike: Strike) -> None:
    """As a power cut or a container's end."""
    _kill_in_a_body(world, strike, "worker", lambda member: member.process.kill9())


@fault("worker's parent killed", "workers", "prefork")
def worker_parent_killed(world: World, strike: Strike) -> None:
    """Its children are left to find out."""
    _kill_in_a_body(world, strike, "prefork worker", lambda member: member.process.kill9_parent())


def _kill_in_a_body(world: World, strike: Strike, role: str, kill: Callable[[Member], None]) -> None:
    member = world.choose(strike.rng, world.by_role(role), world.in_body, PATIENCE)
    bodies = world.in_body(member)
    strike.now(world, member.name)
    world.note_kill(member.pids())
    kill(member)
    strike.hit = bool(world.still_in_body(bodies))


@fault("worker child killed", "workers", "prefork")
def worker_child_killed(world: World, strike: Strike) -> None:
    member = world.choose(strike.rng, world.by_role("prefork worker"), world.in_body, PATIENCE)
    pids = world.in_body(member) or member.children()
    if not pids:
        strike.error = "no child"
        return
    pid = strike.rng.choice(sorted(pids))
    strike.now(world, f"{member.name} {pid}")
    world.note_kill({pid})
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    strike.hit = bool(world.still_in_body({pid}))


@fault("worker stopped past its lease", "workers")
def worker_stopped(world: World, strike: Strike) -> None:
    member = world.choose(strike.rng, world.by_role("worker"), world.in_body, PATIENCE)
    bodies = world.in_body(member)
    strike.now(world, member.name)
    lease = float(world.settings["LEASE"])
    _stop(member, strike, lease + 1.0, lease + 4.0)
    strike.hit = bool(bodies)


@fault("worker told to end", "workers")
def worker_told_to_end(world: World, strike: Strike) -> None:
    """A deploy: SIGTERM finishes what runs."""
    member = world.choose(strike.rng, world.by_role("worker"), world.in_body, PATIENCE)
    bodies = world.in_body(member)
    strike.now(world, member.name)
    member.process.term()
    strike.hit = bool(bodies)


@fault("worker told to end at once", "workers")
def worker_told_to_end_at_once(world: World, strike: Strike) -> None:
    """SIGQUIT: Celery's cold shutdown."""
    member = world.choose(strike.rng, world.by_role("worker"), world.in_body, PATIENCE)
    bodies = world.in_body(member)
    strike.now(world, member.name)
    world.note_kill(member.pids())
    member.process.quit()
    strike.hit = bool(bodies)


def _kill_sweeper(world: World, strike: Strike, role: str) -> None:
    """While rows wait for it that nobody else has sent."""
    (member,) = world.by_role(role)
    deadline = time.monotonic() + PATIENCE
    while not world.unsent() and time.monotonic() < deadline:
        time.sleep(0.02)
    strike.now(world, member.name)
    strike.hit = world.unsent() > 0 and member.process.alive
    member.process.kill9()


for _role in ("relay", "beat"):
    fault(f"{_role} killed", "sweepers", possible=lambda world, role=_role: world.by_role(role))(
        lambda world, strike, role=_role: _kill_sweeper(world, strike, role)
    )


@fault("relay or beat stopped", "sweepers")
def sweeper_stopped(world: World, strike: Strike) -> None:
    """It may hold row locks while it is."""
    member = strike.rng.choice(world.by_role("relay", "beat"))
    strike.now(world, member.name)
    strike.hit = world.unsent() > 0
    _stop(member, strike, 2.0, 5.0)


@fault("clock wrong by minutes", "clocks")
def clock_wrong(world: World, strike: Strike) -> None:
    """It jumps in mid-life, and back again."""
    member = strike.rng.choice(world.members)
    minutes = strike.rng.choice((-1, 1)) * strike.rng.uniform(2.0, 30.0)
    strike.now(world, f"{member.name} {minutes:+.1f} min")
    with world.wrong_clock(member, minutes * 60):
        strike.last(3.0, 6.0)


def _stop(member: Member, strike: Strike, least: float, most: float) -> None:
    member.process.stop()
    try:
        strike.last(least, most)
    finally:
        member.process.cont()
