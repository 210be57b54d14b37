"""The probe that any deployment has: a worker that takes nothing while messages wait is ended, to be started again.

A worker that drops copies is not hung: on a slow machine a queue full of them takes minutes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from qa.chaos.instruments import SHOW_THREADS
from qa.chaos.members import Member
from qa.chaos.world import World
from tests.support.harness import wait_until

#: Seconds without a sign of life after which a worker counts as hung. A worker that holds its messages while the
#: database is away looks again after 15 s at the latest.
PATIENCE = 40.0
EVERY = 5.0


class Liveness:
    """Looks at the workers now and then."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: Workers that hung, one entry each time.
        self.hung: list[str] = []
        self._seen = 0
        self._look_at = 0.0
        self._alive_at: dict[tuple[str, int], float] = {}
        #: How much of each worker's log has been looked at.
        self._read: dict[tuple[str, int], int] = {}

    def look(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + EVERY
        records = self.world.ledger.records
        active = {record["pid"] for record in records[self._seen :] if record["what"] == "starts"}
        self._seen = len(records)
        waiting = self._messages_wait()
        for worker in self.world.by_role("worker"):
            life = worker.name, worker.life
            if self._takes_messages(worker) or not waiting or active & worker.pids():
                self._alive_at[life] = now
            elif now - self._alive_at.setdefault(life, now) > PATIENCE:
                self.hung.append(f"{worker.name} ({worker.process._path.name})")
                self._show_threads(worker.process)
                worker.process._signal(signal.SIGKILL, group=True)

    def _takes_messages(self, worker: Member) -> bool:
        """Whether its log names a message that it has received since the last look."""
        life = worker.name, worker.life
        with worker.process._path.open("rb") as log:
            log.seek(self._read.get(life, 0))
            new = log.read()
        self._read[life] = self._read.get(life, 0) + len(new)
        return b"] received" in new

    @staticmethod
    def _show_threads(process: Any) -> None:
        """Have it write all stacks into its log; the main thread's comes last, and begins in a module."""
        before = process.log.count("in <module>")
        process.cont()
        with contextlib.suppress(ProcessLookupError, AssertionError):
            os.kill(process.popen.pid, SHOW_THREADS)
            wait_until(lambda: process.log.count("in <module>") > before, "the threads' stacks are in the log", 5)

    def _messages_wait(self) -> bool:
        try:
            return self.world.depth() > 0
        except Exception:  # a broker that is away, or without the queue, in any of its ways
            return False
