"""MariaDB crashed, stopped, its sessions ended, its connections used up; rows and tables locked, deadlocks."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from qa.chaos.faults import Strike, fault
from qa.chaos.world import World


@fault("MariaDB crashed", "database", "mariadb")
def mariadb_crashed(world: World, strike: Strike) -> None:
    """SIGKILL: recovery from the log at the next start."""
    strike.now(world, "mariadb")
    world.database.server.kill9()
    world.database.server.start()


@fault("MariaDB stopped", "database", "mariadb")
def mariadb_stopped(world: World, strike: Strike) -> None:
    strike.now(world, "mariadb")
    world.database.server.stop()
    strike.last(0.0, 4.0)
    world.database.server.start()


def _end_sessions(world: World, condition: str) -> int:
    listed = (
        "SELECT p.id FROM information_schema.processlist p "
        "LEFT JOIN information_schema.innodb_trx t ON t.trx_mysql_thread_id = p.id "
        f"WHERE p.user = 'shop' AND {condition}"
    )
    ended = 0
    for (number,) in world.query(listed) or ():
        with contextlib.suppress(Exception):  # it has ended meanwhile
            world.query(f"KILL CONNECTION {number}")
            ended += 1
    return ended


@fault("MariaDB sessions ended", "database", "mariadb")
def mariadb_sessions_ended(world: World, strike: Strike) -> None:
    """All of them, or those in the middle of a transaction."""
    condition = strike.rng.choice(("true", "t.trx_id IS NOT NULL"))
    strike.now(world, condition)
    strike.hit = _end_sessions(world, condition) > 0


def _as_the_site(world: World) -> Any:
    return world.database._driver.connect(
        host="127.0.0.1", port=world.database.port, user="shop", password="secret", database=world.database.name
    )


@fault("MariaDB connections used up", "database", "mariadb")
def mariadb_connections_used_up(world: World, strike: Strike) -> None:
    """Nobody gets in any more; who is in loses the session too, so that all of them knock."""
    held: list[Any] = []
    strike.now(world, "mariadb")
    deadline = time.monotonic() + strike.rng.uniform(2.0, 4.0)
    refused = 0
    try:
        while time.monotonic() < deadline:
            try:
                held.append(_as_the_site(world))
            except world.database.errors:
                refused += 1
                if refused == 1:
                    ours = ", ".join(str(connection.thread_id()) for connection in held)
                    _end_sessions(world, f"t.trx_id IS NULL AND p.id NOT IN ({ours or 0})")
                time.sleep(0.02)
        strike.hit = refused > 0
    finally:
        for connection in held:
            with contextlib.suppress(Exception):
                connection.close()


@fault("MariaDB reads only", "database", "mariadb")
def mariadb_reads_only(world: World, strike: Strike) -> None:
    """As a failover leaves it for a moment: old sessions are gone, new ones can't write."""
    strike.now(world, "mariadb")
    world.query("SET GLOBAL read_only = 1")
    try:
        _end_sessions(world, "true")
        strike.last(1.0, 3.0)
    finally:
        world.query("SET GLOBAL read_only = 0")
        _end_sessions(world, "true")


@fault("MariaDB deadlocks", "database", "mariadb")
def mariadb_deadlocks(world: World, strike: Strike) -> None:
    """A session locks waiting rows and the gaps between them, and then writes an effect; bodies do it the other way
    round. InnoDB ends one of the two with 1213, or with 1205 after five seconds."""
    strike.now(world, "mariadb")
    end = time.monotonic() + strike.rng.uniform(2.0, 5.0)
    with contextlib.closing(_as_the_site(world)) as connection:
        cursor = connection.cursor()
        while time.monotonic() < end:
            with contextlib.suppress(*world.database.errors):
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("BEGIN")
                cursor.execute("SELECT count(*) FROM testapp_effect WHERE name >= %s FOR UPDATE", ["a"])
                cursor.execute("SELECT id FROM reliable_jobs_job WHERE status = 'waiting' LIMIT 20 FOR UPDATE")
                time.sleep(0.1)
            connection.rollback()
            time.sleep(0.05)


@fault("MariaDB table locked", "database", "mariadb")
def mariadb_table_locked(world: World, strike: Strike) -> None:
    """For longer than innodb_lock_wait_timeout, at times."""
    strike.now(world, "mariadb")
    with contextlib.closing(_as_the_site(world)) as connection:
        cursor = connection.cursor()
        cursor.execute("LOCK TABLES reliable_jobs_job WRITE")
        strike.last(1.0, 7.0)
        cursor.execute("UNLOCK TABLES")
