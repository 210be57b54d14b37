"""What the servers share: a child process with a directory, a port and a log of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

HOST = "127.0.0.1"
START_SECONDS = 180.0
STOP_SECONDS = 90.0

Self = TypeVar("Self", bound="Managed")


class ServerMissing(RuntimeError):
    """The server's programs are not installed on this machine."""


class ServerFailed(RuntimeError):
    """The server is installed, but did not do what it was told within its deadline."""


def wait_until(condition: Callable[[], object], seconds: float, what: str, every: float = 0.05) -> None:
    """Poll ``condition`` until it is true; raise `ServerFailed` naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"{what}: not within {seconds:g} s")
        time.sleep(every)


def free_port() -> int:
    """A free TCP port below the usual range of outgoing connections, so that it stays free over a restart."""
    for _ in range(200):
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServerFailed("no free TCP port between 20000 and 32000")


class Managed:
    """What the classes here share: ``with``, and cleaning up at interpreter exit if a test forgets."""

    def start(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: Self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Server(Managed):
    """A child process with a temporary directory and a log."""

    name: str
    user: str | None = None
    """The system user to run as when the tests run as root (``None``: as ourselves)."""

    def __init__(self, parent: Path | None = None) -> None:
        self.port = free_port()
        self.dir = Path(tempfile.mkdtemp(prefix=f"rj-{self.name}-", dir=parent))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._cleanup = weakref.finalize(self, _clean_up, self._processes, self.dir)
        self._account: dict[str, Any] = {}
        if self.user and os.geteuid() == 0:
            try:
                account = pwd.getpwnam(self.user)
            except KeyError:
                self.close()
                raise ServerMissing(f"{self.name} refuses to run as root, and there is no user {self.user!r}") from None
            os.chown(self.dir, account.pw_uid, account.pw_gid)
            self._account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    @property
    def log(self) -> str:
        """The end of what the server wrote to its standard output and error."""
        path = self.dir / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    @property
    def pid(self) -> int:
        """The server's main process."""
        if not self.running:
            raise ServerFailed(f"{self.name} is not running\n{self.log}")
        return self._processes[-1].pid

    @property
    def running(self) -> bool:
        return bool(self._processes) and self._processes[-1].poll() is None

    def answers(self) -> bool:
        raise NotImplementedError

    def kill9(self) -> None:
        """End the server and all its children with SIGKILL, at once, as a power cut or the OOM killer would."""
        if self.running:
            kill_family(self._processes[-1])
        self._processes.clear()

    def close(self) -> None:
        """Kill what is left and remove the directory. Safe to call twice."""
        self._cleanup()

    def stop(self) -> None:
        """End the server in an orderly way."""
        self._signal_and_wait(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _spawn(self, argv: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.dir / "log").open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=env,
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )
        self._processes.append(process)
        return process

    def _run(self, argv: list[str], env: dict[str, str]) -> str:
        """Run one of the server's own programs to its end, in its directory and as its user, and return its output."""
        done = subprocess.run(
            argv,
            env=env,
            cwd=self.dir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            **self._account,
        )
        if done.returncode:
            raise ServerFailed(f"{Path(argv[0]).name} {' '.join(argv[1:])} failed\n{done.stdout}{done.stderr}")
        return done.stdout

    def _wait_for_start(self) -> None:
        def ready() -> bool:
            if not self.running:
                raise ServerFailed(f"{self.name} ended while starting\n{self.log}")
            return self.answers()

        try:
            wait_until(ready, START_SECONDS, f"{self.name} answering on port {self.port}")
        except ServerFailed as error:
            self.kill9()
            raise ServerFailed(f"{error}\n{self.log}") from None

    def _signal_and_wait(self, signum: int) -> None:
        if self.running:
            process = self._processes[-1]
            process.send_signal(signum)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill9()
                raise ServerFailed(f"{self.name} did not stop within {STOP_SECONDS:g} s\n{self.log}") from None
        self._processes.clear()


def program(*names: str) -> str:
    """The first of these programs that is installed."""
    for name in names:
        for found in (shutil.which(name), f"/usr/sbin/{name}", f"/usr/local/sbin/{name}"):
            if found and os.access(found, os.X_OK):
                return found
    raise ServerMissing(f"{names[0]} is not installed")


def accepts(port: int, host: str = HOST) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _clean_up(processes: list[subprocess.Popen[bytes]], directory: Path) -> None:
    for process in reversed(processes):
        if process.poll() is None:
            kill_family(process)
    shutil.rmtree(directory, ignore_errors=True)


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process of ours and its descendants, some of which may have sessions of their own."""
    process.send_signal(signal.SIGSTOP)  # so that it starts no further child meanwhile
    family = [process.pid]
    for pid in family:
        family += [child for child, parent in parents().items() if parent == pid and child not in family]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)
    wait_until(lambda: not set(family) & set(parents()), STOP_SECONDS, "killed processes gone")


def parents() -> dict[int, int]:
    """Parent by process id, of every process that is not a zombie."""
    said = ""
    if Path("/proc/self/stat").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                    said += f"{entry.name} {parent} {state}\n"
    else:
        said = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True).stdout
    rows = (line.split() for line in said.splitlines())
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}
