"""Another process writes to the SQLite file, for longer than Django waits at times."""

from __future__ import annotations

import contextlib

from qa.chaos.faults import Strike, fault
from qa.chaos.world import World


@fault("SQLite locked", "database", "sqlite")
def sqlite_locked(world: World, strike: Strike) -> None:
    strike.now(world, "sqlite")
    with contextlib.closing(world.database.connect()) as connection:
        connection.execute("BEGIN IMMEDIATE")
        strike.last(1.0, 25.0)
        connection.execute("ROLLBACK")
