"""sqlite_forks.py: the main process of a worker forks children while its threads sweep and look."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reliable_jobs import sqlite_forks
from reliable_jobs.presence import beacon
from reliable_jobs.results import copies
from reliable_jobs.status import ProcessKind
from reliable_jobs.sweep import loop
from reliable_jobs.worker import parking, watchdog
from tests.celery_app import app
from tests.support.harness import wait_until

#: A thread reads in a transaction, as a sweep does, while the process forks; then the child reads and writes, then the
#: parent. A moment for the fork to come into the middle is enough: it need not.
FORKS = """
import contextlib, os, sqlite3, sys, threading, time
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}})
from reliable_jobs.sqlite_forks import without_forks

around = without_forks if sys.argv[2] == "guarded" else contextlib.nullcontext

def connect():
    return sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0.3)

def reads():
    with around():
        connection = connect()
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM t").fetchall()
        inside.set()
        time.sleep(0.3)
        connection.execute("COMMIT")
        connection.close()

def wrote(connection):
    try:
        connection.execute("INSERT INTO t VALUES (2)")
        return "wrote"
    except sqlite3.OperationalError as error:
        return str(error)

connect().execute("CREATE TABLE t (x)")
inside = threading.Event()
thread = threading.Thread(target=reads)
thread.start()
inside.wait()
come, go = os.pipe(), os.pipe()
if not os.fork():
    connection = connect()
    connection.execute("SELECT * FROM t").fetchall()
    wrote(connection)
    os.write(come[1], b"x")
    os.read(go[0], 1)
    os._exit(0)
os.read(come[0], 1)
thread.join()
print(wrote(connect()))
os.write(go[1], b"x")
"""


@pytest.mark.promise("I2")
@pytest.mark.parametrize(("guard", "said"), [("guarded", "wrote"), ("bare", "database is locked")])
def test_a_child_that_is_forked_beside_a_sweep_lets_go_of_the_file(tmp_path: Path, guard: str, said: str) -> None:
    """Bare, the child keeps the lock of its parent's thread for ever: that is what the module is for."""
    command = [sys.executable, "-c", FORKS, str(tmp_path / "db.sqlite3"), guard]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert done.stdout.strip() == said


def _sweeps(monkeypatch: pytest.MonkeyPatch, did: Callable[..., Any]) -> Callable[[], Any]:
    one = loop.SweepLoop(app, actor="test", interval=None)
    monkeypatch.setattr(one, "once", lambda: one._stop.set() or did())
    one.wake()
    return one.run


def _says_that_it_is_there(monkeypatch: pytest.MonkeyPatch, did: Callable[..., Any]) -> Callable[[], Any]:
    one = beacon.Beacon(ProcessKind.WORKER)
    return lambda: one._on_each(did)


def _brings_results_in_line(monkeypatch: pytest.MonkeyPatch, did: Callable[..., Any]) -> Callable[[], Any]:
    writer = copies._Writer()
    return lambda: writer.write(did)


def _records(monkeypatch: pytest.MonkeyPatch, did: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: parking.aside(did, "a test")


def _watches(monkeypatch: pytest.MonkeyPatch, did: Callable[..., Any]) -> Callable[[], Any]:
    class Consumer:
        connection = None

        def call_soon(self, call: Any) -> None: ...

    class Worker:
        consumer = Consumer()

    one = watchdog.Watchdog(Worker())
    monkeypatch.setattr(one, "_channel_is_of_another_connection", lambda consumer: False)
    monkeypatch.setattr(one, "_has_room", lambda consumer: True)
    monkeypatch.setattr(one, "_waiting_row", did)
    return lambda: one.tick(10**6)


@pytest.mark.django_db
@pytest.mark.parametrize("work", [_sweeps, _says_that_it_is_there, _brings_results_in_line, _records, _watches])
def test_the_threads_of_a_main_process_wait_for_a_fork(monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    monkeypatch.setattr(
        sqlite_forks, "database_settings", lambda: {"default": {"ENGINE": "django.db.backends.sqlite3"}}
    )
    did = threading.Event()
    thread = threading.Thread(target=work(monkeypatch, lambda *args: did.set()), daemon=True)
    sqlite_forks._gate.before_fork()
    try:
        thread.start()
        assert not did.wait(0.2)
    finally:
        sqlite_forks._gate.after_in_parent()
    wait_until(did.is_set, "it goes on after the fork")
    thread.join(20)


def test_a_fork_waits_no_longer_than_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sqlite_forks, "database_settings", lambda: {"default": {"ENGINE": "django.db.backends.sqlite3"}}
    )
    monkeypatch.setattr(sqlite_forks, "PATIENCE", 0.1)
    inside, go = threading.Event(), threading.Event()

    def works() -> None:
        with sqlite_forks.without_forks():
            inside.set()
            go.wait(20)

    thread = threading.Thread(target=works)
    thread.start()
    assert inside.wait(20)
    sqlite_forks._gate.before_fork()
    sqlite_forks._gate.after_in_parent()
    go.set()
    thread.join(20)
    with sqlite_forks.without_forks():
        pass
