"""Waiting for a condition with a deadline, and where the servers of the tests are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent.parent.parent
DATABASE_URL = "postgresql://postgres@127.0.0.1:5432/postgres"
BROKER_URL = "amqp://guest:guest@127.0.0.1:5672//"
#: Deadline of every wait. Generous, because CI has been seen at a quarter of its speed, and what passes never waits so
#: long. A mutant is tried with less.
PATIENCE = float(os.environ.get("PATIENCE", "180"))

_T = TypeVar("_T")


def wait_until(condition: Callable[[], _T], what: str, seconds: float = PATIENCE, every: float = 0.05) -> _T:
    """Poll until the condition is true and return what it answered.

    Raises:
        AssertionError: it was not within ``seconds``; the message says what was waited for, and whether the condition
            itself hung.
    """
    deadline, asked, longest = time.monotonic() + seconds, 0, 0.0
    while True:
        began = time.monotonic()
        answer = condition()
        if answer:
            return answer
        ended = time.monotonic()
        asked, longest = asked + 1, max(longest, ended - began)
        if ended > deadline:
            raise AssertionError(
                f"not within {seconds:g} s: {what} (asked {asked} times, at most {longest:.1f} s each)"
            )
        time.sleep(every)


def server_urls() -> tuple[str, str]:
    """Database and broker for tests that need servers: from the environment, else the usual local ones."""
    database = os.environ.get("DATABASE_URL", DATABASE_URL)
    broker = os.environ.get("BROKER_URL", BROKER_URL)
    return database if database.startswith("postgres") else DATABASE_URL, broker


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
