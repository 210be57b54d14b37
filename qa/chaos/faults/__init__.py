"""The registry of faults. A fault is a function that does harm to the world, waits, and undoes what it can.

    @fault("worker child killed", "workers")
    def worker_child_killed(world: World, strike: Strike) -> None:
        …
        strike.now(world, "which")        the instant: what is unfinished now is noted
        strike.hit = …                    whether the target had something to lose at that instant

Faults that name the same part of the world never happen at once; others may.
"""

from __future__ import annotations

import dataclasses
import importlib
import random
import time
from collections.abc import Callable
from typing import Any

from qa.chaos.sites import Site
from qa.chaos.world import World

REGISTRY: dict[str, Fault] = {}


@dataclasses.dataclass
class Strike:
    """One fault that happened."""

    kind: str
    rng: random.Random
    target: str = ""
    #: Monotonic times: of the harm, and when all was whole again.
    at: float = 0.0
    over: float = 0.0
    #: The same instant by the database server's clock, in seconds since 1970.
    clock: float = 0.0
    #: Jobs that were to be done at that instant and were not.
    unfinished: list[str] = dataclasses.field(default_factory=list)
    #: The target had something to lose: a body in progress, an open transaction, messages in the queue …
    hit: bool = True
    #: Filled in at the end: seconds until all that was unfinished then had finished.
    recovered: float | None = None
    error: str = ""

    def now(self, world: World, target: str) -> None:
        self.target = target
        found = world.unfinished()
        # A database that does not answer finishes nothing either: what was unfinished at the last look still is.
        self.unfinished = world.last_unfinished if found is None else found
        self.at, self.clock = time.monotonic(), time.time()

    def last(self, least: float, most: float) -> None:
        """Let the fault go on for so many seconds, as the seed will have it. It is the outage's own length: nothing is
        awaited."""
        time.sleep(self.rng.uniform(least, most))

    @property
    def counted(self) -> bool:
        """Only a fault that met unfinished work proves anything."""
        return bool(self.at and self.unfinished and self.hit and not self.error)

    def facts(self) -> dict[str, Any]:
        facts = dataclasses.asdict(self)
        del facts["rng"]
        return {**facts, "unfinished": len(self.unfinished), "counted": self.counted}


@dataclasses.dataclass(frozen=True)
class Fault:
    kind: str
    part: str
    strike: Callable[[World, Strike], None]
    #: Whether there is what it harms, in this campaign.
    possible: Callable[[World], object]
    #: Which servers the site must have, of "postgresql", "mariadb", "rabbitmq" …
    needs: tuple[str, ...] = ()

    def applies(self, site: Site) -> bool:
        """Whether this site can have it at all."""
        servers = {site.database, site.broker, *(pool for _, _, pool, _ in site.workers)}
        servers |= {"pgbouncer"} if site.pooler else set()
        servers |= {"database server"} if site.database != "sqlite" else set()
        return servers.issuperset(self.needs) and site.reason_against(self.kind) is None


def fault(
    kind: str, part: str, *needs: str, possible: Callable[[World], object] = lambda world: True
) -> Callable[[Callable[[World, Strike], None]], Callable[[World, Strike], None]]:
    """Register a fault.

    Args:
        part: of the world that it breaks; one fault at a time breaks each.
        needs: servers and pools without which a site can't have it.
        possible: whether there is what it harms; not every campaign has a relay.
    """

    def register(function: Callable[[World, Strike], None]) -> Callable[[World, Strike], None]:
        REGISTRY[kind] = Fault(kind, part, function, possible, needs)
        return function

    return register


def load() -> dict[str, Fault]:
    """All faults by kind."""
    servers = ("rabbitmq", "redis", "postgresql", "pgbouncer", "mariadb", "sqlite")
    for module in ("processes", "messages", *servers, "network", "bodies"):
        importlib.import_module(f"{__name__}.{module}")
    return REGISTRY
