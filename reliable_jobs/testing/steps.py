"""The instants at which a process can be cut, counted, and the cut itself: SIGKILL, from the process to itself.

Statements, savepoints among them, are seen as they are sent: by psycopg's ``cursor_factory``, because statements that
travel together are joined below Django's ``execute_wrapper``, which sees them with other drivers. COMMIT and ROLLBACK
are seen by the connection's own ``commit()`` and ``rollback()``. BEGIN goes out with the first statement of its
transaction. What runs beside Django (COPY, a raw connection of the driver) is not seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created

from reliable_jobs.compat.django import driver_of

#: The line that stands before a kill.
KILLED = "killed at"
_LONG_LIST = re.compile(r"(SELECT|RETURNING) .{60,}?(?= FROM |$)", re.S)
_SAVEPOINT = re.compile(r'(?<=SAVEPOINT )"?s\w+"?')


def shortened(sql: str, most: int = 100) -> str:
    """A statement in one line, without what differs from run to run."""
    text = _SAVEPOINT.sub("…", _LONG_LIST.sub(r"\1 …", " ".join(str(sql).split())))
    first, joined, last = text.rpartition("; ")
    rest = f"{joined}{last}" if joined and len(last) < most // 2 else ""
    text = first if rest else text
    return (text if len(text) <= most else f"{text[: most - 1]}…") + rest


class Steps:
    """Counts the steps of this thread, writes each to a file, and kills the process at one of them.

    Args:
        path: a line for each step, ``7 before UPDATE …``; at the kill one more, ``killed at 7``.
        kill_at: the number of the step, from 1; 0 for none.
    """

    def __init__(self, path: str | Path, kill_at: int = 0) -> None:
        self.kill_at = kill_at
        self.count = 0
        self.counting = True
        self._thread = threading.get_ident()
        self._entered = contextlib.ExitStack()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def reached(self, name: str) -> None:
        if not self.counting or threading.get_ident() != self._thread:
            return
        self.count += 1
        self._write(f"{self.count} {name}")
        if self.count == self.kill_at:
            self._write(f"{KILLED} {self.count}")
            os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())

    @contextlib.contextmanager
    def around(self, name: str) -> Iterator[None]:
        self.reached(f"before {name}")
        yield
        self.reached(f"after {name}")

    def watch_databases(self) -> None:
        """Count the statements of every connection that this process opens from now on."""
        connection_created.connect(self._connected, weak=False)

    def _connected(self, connection: Any, **kwargs: Any) -> None:
        factory = getattr(driver_of(connection), "cursor_factory", None)
        if factory is not None:
            driver_of(connection).cursor_factory = self._counting(factory, connection.alias)
        if getattr(connection, "watched_by", None) is self:
            return  # the same wrapper, connected anew
        connection.watched_by = self
        if factory is None:
            self._entered.enter_context(connection.execute_wrapper(self._statement))  # for good
        for name in ("commit", "rollback"):
            setattr(connection, name, self._wrapped(getattr(connection, name), f"{connection.alias}: {name.upper()}"))

    def _counting(self, factory: Any, alias: str) -> Any:
        steps = self

        class Cursor(factory):
            def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
                with steps._around_statement(alias, query):
                    return super().execute(query, *args, **kwargs)

            def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
                with steps._around_statement(alias, query):
                    return super().executemany(query, *args, **kwargs)

        return Cursor

    def _statement(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        with self._around_statement(context["connection"].alias, sql):
            return execute(sql, params, many, context)

    def _around_statement(self, alias: str, sql: Any) -> contextlib.AbstractContextManager[None]:
        # A relay's alarm clock, rung twice a second at most, and the health check of a connection that has rested for a
        # second: not in every run.
        if str(sql).startswith("NOTIFY ") or str(sql) == "SELECT 1":
            return contextlib.nullcontext()
        return self.around(f"{alias}: {shortened(sql)}")

    def _wrapped(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.around(name):
                return call(*args, **kwargs)

        return counted


def read(path: str | Path) -> tuple[list[str], int]:
    """The names of the steps that a process reached, in order, and the number of the one that killed it, or 0."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    killed = int(lines.pop().rpartition(" ")[2]) if lines and lines[-1].startswith(KILLED) else 0
    return [line.partition(" ")[2] for line in lines], killed


def in_fork(work: Callable[[], Any]) -> int:
    """Do something in a child process, which ends with it; returns its pid. What it raises is printed, and its exit
    code is 1 then. The caller must have no database connection open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, where other threads live
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(pid: int, seconds: float) -> int | None:
    """Wait for a child of this process: its exit code, minus the signal that killed it, or None where it did not end in
    time (and was killed then)."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
