"""PgBouncer restarted, killed, silent; its server connections exchanged."""

from __future__ import annotations

import os
import signal

import psycopg

from qa.chaos.faults import Strike, fault
from qa.chaos.world import World


@fault("PgBouncer restarted", "pooler", "pgbouncer")
def pooler_restarted(world: World, strike: Strike) -> None:
    strike.now(world, "pgbouncer")
    world.database.pooler.stop()
    strike.last(0.0, 2.0)
    world.database.pooler.start()


@fault("PgBouncer killed", "pooler", "pgbouncer")
def pooler_killed(world: World, strike: Strike) -> None:
    strike.now(world, "pgbouncer")
    world.database.pooler.kill9()
    world.database.pooler.start()


@fault("PgBouncer silent", "pooler", "pgbouncer")
def pooler_silent(world: World, strike: Strike) -> None:
    strike.now(world, "pgbouncer")
    os.kill(world.database.pooler.pid, signal.SIGSTOP)
    try:
        strike.last(1.0, 6.0)
    finally:
        os.kill(world.database.pooler.pid, signal.SIGCONT)


@fault("PgBouncer exchanges its server connections", "pooler", "pgbouncer")
def pooler_reconnects(world: World, strike: Strike) -> None:
    """Each at the end of its transaction: whatever a session knew is forgotten."""
    strike.now(world, "pgbouncer")
    url = world.database.pooler.url.rpartition("/")[0] + "/pgbouncer"
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("RECONNECT")
