"""A process of the campaign that is started again whenever it ends, as systemd or Kubernetes would do it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.harness import Process
from tests.support.private_servers import parents

#: Between an end and the next start, in seconds.
PAUSE = 0.5


class Member:
    """One role, played by one process after the other."""

    def __init__(
        self,
        name: str,
        role: str,
        host: str,
        argv: Callable[[int], list[str]],
        env: dict[str, str],
        directory: Path,
    ) -> None:
        self.name, self.role, self.host = name, role, host
        self._argv, self._env, self._directory = argv, env, directory
        self.life = 0
        self.logs: list[Path] = []
        #: Process groups whose leader is gone, but perhaps not its children.
        self._orphaned: set[int] = set()
        self._dead_since: float | None = None
        self._dismissed = False
        self._start()

    def _start(self) -> None:
        self.process = Process(self.name, self._argv(self.life), self._env, self._directory)
        self.logs.append(self.process._path)
        self.life += 1

    def pids(self) -> set[int]:
        """Of its present life, children included."""
        leader = self.process.popen.pid
        return {leader} | {pid for pid, parent in parents().items() if parent == leader}

    def children(self) -> set[int]:
        return self.pids() - {self.process.popen.pid}

    def keep_alive(self) -> None:
        self._orphaned = {group for group in self._orphaned if _exists(group)}
        if self.process.alive or self._dismissed:
            self._dead_since = None
        elif self._dead_since is None:
            self._dead_since = time.monotonic()
            self._orphaned.add(self.process.popen.pid)
        elif time.monotonic() - self._dead_since > PAUSE:
            self._dead_since = None
            self._start()

    def dismiss(self) -> None:
        """Told to end, and not started again."""
        self._dismissed = True
        self.process.term()

    def end(self) -> None:
        """At once, with every child of every life."""
        self._dismissed = True
        self.process.cont()
        self.process.kill9()
        for group in self._orphaned:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
