"""PostgreSQL crashed, stopped, its sessions ended, its connections used up, its disk full."""

from __future__ import annotations

import time

import psycopg

from qa.chaos.disk import filled
from qa.chaos.faults import Strike, fault
from qa.chaos.world import World


@fault("database crashed", "database", "postgresql")
def database_crashed(world: World, strike: Strike) -> None:
    """Immediate mode: recovery from the log at the next start."""
    strike.now(world, "postgresql")
    world.database.server.restart("immediate")


@fault("database stopped", "database", "postgresql")
def database_stopped(world: World, strike: Strike) -> None:
    strike.now(world, "postgresql")
    world.database.server.stop("fast")
    strike.last(0.0, 4.0)
    world.database.server.start()


@fault("database sessions ended", "database", "postgresql")
def sessions_ended(world: World, strike: Strike) -> None:
    """All of them, or those in the middle of a transaction."""
    condition = strike.rng.choice(("true", "xact_start IS NOT NULL"))
    strike.now(world, condition)
    ended = world.query(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
    )
    strike.hit = bool(ended and ended[0][0])


@fault("database connections used up", "database", "postgresql")
def connections_used_up(world: World, strike: Strike) -> None:
    """Nobody gets in any more; who is in loses his session too, so that all of them knock."""
    held: list[psycopg.Connection[object]] = []
    strike.now(world, "postgresql")
    deadline = time.monotonic() + strike.rng.uniform(2.0, 4.0)
    try:
        refused = 0
        while time.monotonic() < deadline:
            try:
                held.append(psycopg.connect(world.database.server.url, autocommit=True, connect_timeout=3))
            except psycopg.OperationalError:
                refused += 1
                if refused == 1 and held:
                    held[0].execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = %s AND application_name = '' AND xact_start IS NULL",
                        [world.database.name],
                    )
                time.sleep(0.02)
        strike.hit = refused > 0
    finally:
        for connection in held:
            connection.close()


@fault("database's disk full", "database", "postgresql", possible=lambda world: world.database.disk)
def disk_full(world: World, strike: Strike) -> None:
    """Statements fail (53100); where its log can't be written the server ends itself, and is started again."""
    assert world.database.disk is not None
    strike.now(world, "postgresql")
    with filled(world.database.disk):
        strike.last(1.0, 3.0)
    world.database.server.start()


@fault("database reads only", "database", "postgresql")
def reads_only(world: World, strike: Strike) -> None:
    """As a failover leaves it for a moment: old sessions are gone, new ones can't write."""
    name = world.database.name
    strike.now(world, "postgresql")
    world.query(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    try:
        world.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        strike.last(1.0, 3.0)
    finally:
        # The control session may be of those that can't write.
        world.query("SET default_transaction_read_only = off")
        world.query(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        world.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
