"""A worker's port for Prometheus that is taken, and the directory of numbers that a killed worker leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.test import override_settings

from reliable_jobs.telemetry import directory, port
from tests.support.harness import Stack, wait_until
from tests.support.private_servers import free_port
from tests.testapp import tasks

# --- the port ---------------------------------------------------------------------------------------------------------


@pytest.mark.servers
def test_a_port_that_is_taken_is_said_and_opened_when_it_is_free(stack: Stack, idle_queue: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        worker = stack.worker(pool="solo", METRICS_LISTEN=where)
        stack.ends(tasks.effect.delay("goes on"))
        worker.wait_for_line(f"METRICS_LISTEN: {where} can't be opened yet")
    worker.wait_for_line(f"Metrics for Prometheus: http://{where}/metrics")
    with urllib.request.urlopen(f"http://{where}/metrics", timeout=60) as answer:
        assert "reliable_jobs_settled_total" in answer.read().decode(), "what it did before is counted"
    worker.term()
    worker.wait()


@pytest.mark.servers
def test_a_worker_that_never_gets_its_port_ends_as_any(stack: Stack, idle_queue: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        worker = stack.worker(pool="prefork", METRICS_LISTEN=f"127.0.0.1:{taken.getsockname()[1]}")
        worker.wait_for_line("can't be opened yet")
        worker.term()
        worker.wait()


@pytest.mark.usefixtures("_undone")
def test_an_address_that_this_host_never_has_is_said_and_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with override_settings(RELIABLE_JOBS={"METRICS_LISTEN": "no-such-host.invalid:9808"}):
        port._open()
    assert "no-such-host.invalid:9808 can't be opened (" in caplog.text
    assert not port._undo


@pytest.fixture
def _undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(port.DIRECTORY, str(tmp_path))
    yield
    port._close()


# --- the directory of the numbers -------------------------------------------------------------------------------------

MAKES_ONE = """
import os, signal, sys, time
from reliable_jobs.telemetry import directory

made, remove = directory.make()
if sys.argv[1] == "forks" and not os.fork():
    print(made, os.getpid(), flush=True)
    time.sleep(600)  # it lives until the test kills it
if sys.argv[1] == "ends":
    remove()
if sys.argv[1] != "forks":
    print(made, flush=True)
time.sleep(600)
"""


@pytest.fixture
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def other(kind: str = "") -> tuple[subprocess.Popen[str], list[str]]:
    """Another worker, and what it says: its directory, and of one that forks its child's id."""
    process = subprocess.Popen([sys.executable, "-c", MAKES_ONE, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()


@pytest.mark.usefixtures("_own_directory")
def test_what_a_killed_worker_leaves_behind_is_removed_and_nothing_else(tmp_path: Path) -> None:
    alive, (kept,) = other()
    killed, (left,) = other()
    parent, (orphans, child) = other("forks")
    ended, (removed,) = other("ends")
    for name in (f"{directory.PREFIX}no-lock", "another-program", f"{directory.NEW}being-made"):
        (tmp_path / name).mkdir()
    try:
        assert directory.remove_left_behind() == []
        for one in (killed, parent, ended):
            one.kill()
            one.wait()
        assert directory.remove_left_behind() == [left]
        assert not Path(left).exists()
        assert not Path(removed).exists()
        assert Path(kept).is_dir()
        assert Path(orphans).is_dir(), "a child of it lives"
        assert len(list(tmp_path.iterdir())) == 5
    finally:
        os.kill(int(child), signal.SIGKILL)
        for one in (alive, killed, parent, ended):
            one.kill()
            one.communicate()
    wait_until(lambda: sorted(directory.remove_left_behind()) == sorted([kept, orphans]), "they are removed too")


@pytest.mark.usefixtures("_own_directory")
def test_another_users_directory_and_a_link_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, remove = directory.make()
    remove()
    Path(made).mkdir()
    (Path(made) / directory.LOCK).touch()
    link = tmp_path / f"{directory.PREFIX}link"
    link.symlink_to(made)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert directory.remove_left_behind() == []
    assert directory.remove_left_behind() == [made]
    assert link.is_symlink()


@pytest.mark.servers
def test_a_worker_removes_what_a_killed_one_has_left(
    stack: Stack, idle_queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def directories() -> list[Path]:
        return list(tmp_path.glob(f"{directory.PREFIX}*"))

    first = stack.worker(METRICS_LISTEN=f"127.0.0.1:{free_port()}")
    [left] = directories()
    first.kill9()
    second = stack.worker(METRICS_LISTEN=f"127.0.0.1:{free_port()}")
    wait_until(lambda: left not in directories() and len(directories()) == 1, "it is removed")
    second.term()
    second.wait()
    assert directories() == []
