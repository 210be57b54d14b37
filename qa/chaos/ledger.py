"""The append-only file beside the database: one JSON line per write, by any process, never undone by a rollback.

opens, intends, committed, rolled back, unknown   a producer's order: its transaction, and what became of it
publishes                                         ids of jobs whose messages go out now
starts, ends                                      a body, by process and job
external                                          an effect outside the database, under its idempotency key
kills                                             the campaign ends processes, in the midst of what they do
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Names the file in a process's environment.
VARIABLE = "TEST_LEDGER"


@functools.cache
def _descriptor(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(what: str, **facts: Any) -> None:
    """Append a line; with one write, so that a process killed in it leaves the whole line or none. Without a campaign
    there is no file, and nothing to do."""
    if VARIABLE in os.environ:
        append(os.environ[VARIABLE], what, **facts)


def append(path: str, what: str, **facts: Any) -> None:
    """The same, in a file that is named."""
    line = json.dumps({"what": what, "at": round(time.monotonic(), 4), "pid": os.getpid(), **facts})
    os.write(_descriptor(path), f"{line}\n".encode())


class Reader:
    """Reads what has been appended, and keeps account of what is open at the moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        #: Bodies that have begun and not ended: (pid, job) → name.
        self.bodies: dict[tuple[int, str], str] = {}
        #: Orders whose transactions were begun and of which nothing more was heard: order → pid.
        self.orders: dict[str, int] = {}
        self.poison_starts = 0
        #: Jobs of orders that were committed.
        self.committed = 0
        self._intended: dict[str, int] = {}
        self._position = 0

    def read(self) -> Reader:
        """Take in the complete lines that are new."""
        if not self.path.exists():
            return self
        with self.path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._position += len(new)
        for line in new.splitlines():
            record = json.loads(line)
            self.records.append(record)
            self._account(record)
        return self

    def _account(self, record: dict[str, Any]) -> None:
        what = record["what"]
        if what == "starts":
            self.bodies[record["pid"], record["job"]] = record["name"]
            self.poison_starts += record["name"].startswith("poison:")
        elif what == "ends":
            self.bodies.pop((record["pid"], record["job"]), None)
        elif what == "opens":
            self.orders[record["order"]] = record["pid"]
        elif what == "intends":
            self._intended[record["order"]] = len(record["jobs"])
        elif what in ("committed", "rolled back", "unknown"):
            self.orders.pop(record["order"], None)
            self.committed += self._intended.pop(record["order"], 0) if what == "committed" else 0

    def in_body(self, pids: Iterable[int]) -> set[int]:
        """Those of the processes that are in the middle of a body."""
        return {pid for pid, _ in self.bodies} & set(pids)

    def has_open_order(self, pid: int) -> bool:
        return pid in self.orders.values()
