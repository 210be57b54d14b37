"""Processes that tests start, kill and listen to."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from tests.support.fork_server import ForkServer
from tests.support.harness.waiting import PATIENCE, ROOT, wait_until

#: Of an environment: settings that take another driver than the one which the fork server has loaded.
NOT_FORKED = {"TEST_DRIVER"}


@functools.cache
def fork_server() -> ForkServer:
    return ForkServer(ROOT)


class Process:
    """A child in a process group of its own, with its output in a file."""

    #: Whether it may come from the fork server, which starts it sooner.
    forked = True

    def __init__(self, name: str, argv: list[str], env: dict[str, str], directory: Path) -> None:
        self.name = name
        self._argv, self._env = argv, env
        self._path = directory / f"{name}-{uuid.uuid4().hex[:6]}.log"
        self.start()

    def start(self) -> None:
        self.popen: Any
        with self._path.open("ab") as output:
            if self.forked and self._can_be_forked():
                self.popen = fork_server().start(self._argv[1:], self._env, ROOT, self._path)
            else:
                self.popen = subprocess.Popen(
                    self._argv, env=self._env, cwd=ROOT, start_new_session=True, **self.streams(output)
                )

    def _can_be_forked(self) -> bool:
        # Those patch the standard library, before anything is imported.
        patched = {"gevent", "eventlet"} & set(self._argv)
        return self._argv[0] == sys.executable and not patched and not NOT_FORKED & set(self._env)

    def streams(self, output: Any) -> dict[str, Any]:
        """Where standard input, output and error go; ``output`` is the open log."""
        return {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}

    @property
    def log(self) -> str:
        return self._path.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def wait_for_line(self, text: str, count: int = 1) -> None:
        def said() -> bool:
            if self.log.count(text) >= count:
                return True
            assert self.alive, f"{self.name} ended ({self.popen.returncode}) before it said {text!r}:\n{self.log}"
            return False

        wait_until(said, f"{self.name} says {text!r}")

    def wait(self, seconds: float = PATIENCE) -> int:
        return self.popen.wait(seconds)

    def _signal(self, number: int, *, group: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.popen.pid, number)
            elif self.alive:
                self.popen.send_signal(number)

    def kill9(self) -> None:
        """The whole group at once, as a power cut or a container's end would."""
        self._signal(signal.SIGKILL, group=True)
        self.popen.wait(PATIENCE)

    def kill9_parent(self) -> None:
        """Only the parent; a prefork pool's children are left to find out."""
        self._signal(signal.SIGKILL, group=False)
        self.popen.wait(PATIENCE)

    def term(self) -> None:
        self._signal(signal.SIGTERM, group=False)

    def quit(self) -> None:
        self._signal(signal.SIGQUIT, group=False)

    def stop(self) -> None:
        """SIGSTOP to the whole group: it lives, and does nothing."""
        self._signal(signal.SIGSTOP, group=True)

    def cont(self) -> None:
        self._signal(signal.SIGCONT, group=True)

    def restart_if_dead(self) -> None:
        """What systemd or Kubernetes would do."""
        if not self.alive:
            self.start()


class Worker(Process):
    """A real ``celery worker``."""

    def wait_until_ready(self) -> Worker:
        self.wait_for_line(" ready.")
        return self

    def kill9_child(self, pid: int | str) -> None:
        """One child of the prefork pool; a test knows its pid from what the body logged outside."""
        assert int(pid) != self.popen.pid
        os.kill(int(pid), signal.SIGKILL)
