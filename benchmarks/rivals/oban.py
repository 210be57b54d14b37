"""oban (oban-py) by its own ``oban start``, ten jobs at a time per process, as in its README."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, ClassVar

from oban import Oban, worker
from oban.schema import install
from psycopg_pool import AsyncConnectionPool

from benchmarks.rivals import INSERT, Rival, in_chunks

_pool: AsyncConnectionPool | None = None


class ObanPy(Rival):
    """Two processes, each an event loop; the body is psycopg's in autocommit, without Django."""

    distributions: ClassVar[tuple[str, ...]] = ("oban",)
    stored = "SELECT count(*) FROM oban_jobs"

    def install(self) -> None:
        async def run() -> None:
            async with AsyncConnectionPool(os.environ["DATABASE_URL"], open=False) as pool:
                await install(pool)

        asyncio.run(run())

    def fill(self, numbers: range) -> None:
        asyncio.run(_enqueue(in_chunks(numbers, 1000)))

    def bulk(self, count: int) -> None:
        asyncio.run(_enqueue([range(count)]))

    def environment(self, database_url: str) -> dict[str, str]:
        return {"OBAN_DSN": database_url}

    def workers(self) -> list[list[str]]:
        modules = ["--cron-modules", "benchmarks.rivals.oban"]  # else it searches every file for workers
        return [
            [sys.executable, "-m", "oban", "start", "--queues", "default:10", "--log-level", "WARNING", *modules]
        ] * self.processes


async def _enqueue(chunks: list[range]) -> None:
    async with AsyncConnectionPool(os.environ["DATABASE_URL"], open=False) as pool:
        oban = Oban(pool=pool)
        for chunk in chunks:
            await oban.enqueue_many(Effect.new({"number": number}) for number in chunk)  # type: ignore[attr-defined]


@worker(queue="default")
class Effect:
    async def process(self, job: Any) -> None:
        global _pool
        if _pool is None:
            _pool = AsyncConnectionPool(
                os.environ["DATABASE_URL"], min_size=10, max_size=10, kwargs={"autocommit": True}, open=False
            )
            await _pool.open()
        async with _pool.connection() as connection:
            await connection.execute(f"{INSERT}(%s)", [job.args["number"]])
