"""Starts Python processes in a quarter of the time: ``python -m tests.support.fork_server`` imports Django and Celery
once, without settings, and forks a child for each order. The child goes on as ``python -m …`` or ``python -c …`` would.

Nothing of the project is imported before the fork: not its settings, its apps, reliable_jobs. The child has a session,
an environment and standard streams of its own, and ends as an interpreter does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

#: What a worker and a management command import of other people's, as far as it does without Django's settings.
LIBRARIES = (
    "amqp.connection",
    "billiard.pool",
    "billiard.popen_fork",
    "celery.app.amqp",
    "celery.app.builtins",
    "celery.app.control",
    "celery.app.log",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.canvas",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.consumer",
    "celery.worker.loops",
    "celery.worker.strategy",
    "django.contrib.admin.apps",
    "django.core.checks.registry",
    "django.core.management",
    "django.db.backends.postgresql.base",
    "django.db.migrations.executor",
    "django.db.models",
    "django.forms",
    "django.template.defaulttags",
    "django.test.utils",
    "django.views.generic",
    "kombu.transport.pyamqp",
    "psycopg",
)


# --- the server -------------------------------------------------------------------------------------------------------


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Answer orders until the connection ends, and end what is left. Returns None then, in each child its order."""
    reader, left = connection.makefile("rb"), set()
    codes: dict[int, int] = {}  # two threads may ask for the same process
    for line in reader:
        order = json.loads(line)
        if "ended" in order:
            asked: int = order["ended"]
            if asked not in codes:
                pid, status = os.waitpid(asked, os.WNOHANG)
                if pid:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    left.discard(pid)
            answer: Any = codes.get(asked)
        else:
            begins, led = os.pipe()
            answer = os.fork()
            if not answer:
                os.setsid()
                for descriptor in (begins, led):
                    os.close(descriptor)
                reader.close()
                connection.close()
                return order
            os.close(led)
            os.read(begins, 1)  # until it leads a process group: it may be killed by that
            os.close(begins)
            left.add(answer)
            codes.pop(answer, None)  # a number that is used again
        connection.sendall(f"{json.dumps(answer)}\n".encode())
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return None


def become(order: dict[str, Any]) -> None:
    """Go on as the ordered process."""
    os.chdir(order["cwd"])
    sys.path[0] = order["cwd"]
    added = order["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in added if path and path not in sys.path]
    os.environ.clear()
    os.environ.update(order["env"])
    for number, name in enumerate(("/dev/null", order["output"], order["errors"])):
        opened = os.open(name, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(opened, number)
        os.close(opened)
    time.tzset()
    kind, what, *sys.argv = order["arguments"]
    if kind == "-m":
        sys.argv.insert(0, what)
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv.insert(0, "-c")
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(what, "<string>", "exec"), main.__dict__)


# --- its clients ------------------------------------------------------------------------------------------------------


class ForkServer:
    """Starts processes. It ends with the process that made it, and what it has started ends with it."""

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
        argv = [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self._process = subprocess.Popen(
            argv, env=env, cwd=directory, pass_fds=[theirs.fileno()], start_new_session=True, **streams
        )
        theirs.close()
        self._connection, self._reader = ours, ours.makefile("r")

    def ask(self, order: dict[str, Any]) -> Any:
        with self._lock:
            self._connection.sendall(f"{json.dumps(order)}\n".encode())
            answer = self._reader.readline()
        assert answer, "the fork server has ended"
        return json.loads(answer)

    def start(
        self, arguments: list[str], env: dict[str, str], cwd: Path, output: Path, errors: Path | None = None
    ) -> Forked:
        """``python ARGUMENTS`` in a session of its own.

        Args:
            arguments: beginning with ``-m NAME`` or ``-c CODE``.
            output: file for standard output, and for standard error where ``errors`` is not given; must exist.
        """
        order = {"arguments": arguments, "env": env, "cwd": str(cwd), "output": str(output)}
        return Forked(self, self.ask({**order, "errors": str(errors or output)}))

    def run(
        self, arguments: list[str], env: dict[str, str], cwd: Path, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """``python ARGUMENTS`` to its end.

        Raises:
            subprocess.TimeoutExpired: it did not end in time, and was killed.
        """
        with tempfile.TemporaryDirectory() as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            output.touch()
            errors.touch()
            process = self.start(arguments, env, cwd, output, errors)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            return subprocess.CompletedProcess(arguments, code, output.read_text(), errors.read_text())

    def close(self) -> None:
        self._reader.close()
        self._connection.close()
        self._process.wait()


class Forked:
    """A started process; what of `subprocess.Popen` the tests use."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """
        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        deadline, pause = None if timeout is None else time.monotonic() + timeout, 0.001
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    ordered = serve(socket.socket(fileno=int(sys.argv[1])))
    if ordered is not None:
        become(ordered)
