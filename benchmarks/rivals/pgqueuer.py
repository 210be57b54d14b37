"""pgqueuer on asyncpg, by its own ``pgq run``: durable tables, batches of 10, both its defaults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import ClassVar

import asyncpg  # type: ignore[import-untyped]
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.rivals import INSERT, Rival, in_chunks


class Pgqueuer(Rival):
    """Two processes, each an event loop that runs its batches concurrently; the body is asyncpg's, without Django."""

    distributions: ClassVar[tuple[str, ...]] = ("pgqueuer", "asyncpg")
    stored = "SELECT count(*) FROM pgqueuer"
    unfinished = f"{stored} WHERE status IN ('queued', 'picked')"

    def install(self) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(os.environ["DATABASE_URL"])
            await Queries(AsyncpgDriver(connection)).install()
            await connection.close()

        asyncio.run(run())

    def fill(self, numbers: range) -> None:
        asyncio.run(_enqueue(in_chunks(numbers, 5000)))

    def enqueue_many(self, numbers: range, priority: int) -> None:
        asyncio.run(_enqueue([numbers], priority))

    def bulk(self, count: int) -> None:
        asyncio.run(_enqueue([range(count)]))

    def workers(self) -> list[list[str]]:
        command = [
            sys.executable,
            "-m",
            "pgqueuer",
            "run",
            "benchmarks.rivals.pgqueuer:serve",
            "--log-level",
            "WARNING",
        ]
        return [command] * self.processes


async def _enqueue(chunks: list[range], priority: int = 0) -> None:
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    queries = Queries(AsyncpgDriver(connection))
    for chunk in chunks:
        await queries.enqueue(["effect"] * len(chunk), [b"%d" % number for number in chunk], [priority] * len(chunk))
    await connection.close()


@contextlib.asynccontextmanager
async def serve() -> AsyncIterator[PgQueuer]:
    """What ``pgq run`` runs: one connection for the queue, as its README has it, and a pool for the bodies."""
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"])
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(os.environ["DATABASE_URL"])))

    @queue.entrypoint("effect")
    async def effect(job: Job) -> None:
        await pool.execute(f"{INSERT}($1)", int(job.payload or b""))

    yield queue
