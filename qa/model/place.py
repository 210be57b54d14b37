"""Where histories take place, one after the other."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import namedtuple_row

from qa.model.actors import Actor


class Place:
    """What one history leaves to the next: connections, and processes that have nothing to do."""

    def __init__(self, database_url: str) -> None:
        self.sql: psycopg.Connection[Any] = psycopg.connect(database_url, autocommit=True, row_factory=namedtuple_row)
        self.plain = psycopg.connect(database_url, autocommit=True)
        self.idle: list[Actor] = []
        self.requests: dict[tuple[str, str], Any] = {}
        self._actors = 0

    def actor(self) -> Actor:
        if self.idle:
            return self.idle.pop()
        self._actors += 1
        return Actor(f"actor {self._actors}", self.plain)

    def dismiss(self) -> None:
        """What is kept for each thread is made anew from here on."""
        while self.idle:
            self.idle.pop().leave()

    def close(self) -> None:
        self.dismiss()
        self.sql.close()
        self.plain.close()
