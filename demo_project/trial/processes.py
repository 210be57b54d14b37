"""Workers, beat and web server as real processes. Each leads a process group of its own, so that a worker can be
killed with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from django.conf import settings

CHILDREN = 3
#: Seconds that a process gets to end by itself.
PATIENCE = 15.0


class Process:
    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self.log = settings.DEMO_DIR / f"{name}.log"
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=settings.BASE_DIR,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL to the whole group, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])


class Fleet:
    """All processes of a run. Leaving the context ends them."""

    def __init__(self) -> None:
        self.workers: list[Process] = []
        self.others: list[Process] = []
        self._number = 0

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start_worker(self) -> Process:
        self._number += 1
        name = f"worker{self._number}"
        node = f"{name}@{settings.CELERY_TASK_DEFAULT_QUEUE}"
        arguments = ["-m", "celery", "-A", "demo_project", "worker", "-n", node, "-c", str(CHILDREN), "-l", "INFO"]
        arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        worker = Process(name, arguments)
        self.workers.append(worker)
        return worker

    def start_beat(self) -> Process:
        return self._other("beat", ["-m", "celery", "-A", "demo_project", "beat", "-S", "django", "--pidfile="])

    def start_site(self, address: str) -> Process:
        return self._other("site", [str(settings.BASE_DIR / "manage.py"), "runserver", address, "--noreload"])

    def _other(self, name: str, arguments: list[str]) -> Process:
        process = Process(name, arguments)
        self.others.append(process)
        return process

    def worker_of(self, pid: int) -> Process | None:
        """The living worker whose pool the process belongs to."""
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(pid)
            return next((worker for worker in self.workers if worker.pid == group and worker.alive), None)
        return None

    def kill_worker(self, worker: Process) -> None:
        self.workers.remove(worker)  # first, or it would be among the dead for a moment
        worker.kill()

    def dead(self) -> list[Process]:
        """Processes that ended without being told to."""
        return [process for process in [*self.workers, *self.others] if not process.alive]

    def stop(self) -> None:
        """TERM, which lets bodies finish, then KILL for what is still there."""
        running = [*self.workers, *self.others]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                process.popen.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.1, deadline - time.monotonic()))
            process.kill()
        self.workers, self.others = [], []


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken effect. Raises ProcessLookupError when the process is gone."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    os.kill(pid, 0)  # gone, or a system without /proc
    shown = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip().startswith("T")
