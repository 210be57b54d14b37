"""What the fork server starts is like a process that was started anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fork_server import Forked, ForkServer
from tests.support.harness import ROOT, wait_until

TELLS = """
    import json, os, signal, sys
    print(json.dumps({
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "first path": sys.path[0],
        "main": __name__,
        "input": os.readlink("/proc/self/fd/0"),
        "leads": os.getpid() == os.getpgrp() == os.getsid(0),
        "ours": sorted(name for name in sys.modules if name.split(".")[0] in ("reliable_jobs", "demo_project")),
        "settings": "DJANGO_SETTINGS_MODULE" in os.environ,
        "open": sorted(os.listdir("/proc/self/fd"))[:-1],
        "threads": len(os.listdir("/proc/self/task")),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)],
    }))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    made = ForkServer(ROOT)
    yield made
    made.close()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "output"
    path.touch()
    return path


def code(server: ForkServer, text: str, output: Path) -> Forked:
    return server.start(["-c", textwrap.dedent(text), "an argument"], dict(os.environ), ROOT, output)


def test_a_process_is_as_if_started_anew(server: ForkServer, output: Path, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "LC_CTYPE": "C.UTF-8"}
    arguments = ["-c", textwrap.dedent(TELLS), "an argument"]
    forked = server.start(arguments, environment, tmp_path, output)
    assert forked.wait(20) == 0
    told = json.loads(output.read_text())
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=True,
    )
    anew = json.loads(done.stdout)
    anew["first path"] = str(tmp_path)  # there it is empty, which means the same
    assert told == anew


def test_a_module_runs_as_main_and_its_status_is_told(server: ForkServer, output: Path, tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import sys; print(__name__, sys.argv); sys.exit(3)")
    forked = server.start(["-m", "ends", "now"], dict(os.environ), tmp_path, output)
    assert forked.wait(20) == 3
    assert output.read_text() == f"__main__ ['{tmp_path}/ends.py', 'now']\n"


def test_an_error_is_written_and_atexit_is_called(server: ForkServer, output: Path) -> None:
    forked = code(server, "import atexit; atexit.register(print, 'at exit'); 1 / 0", output)
    assert forked.wait(20) == 1
    assert "ZeroDivisionError" in output.read_text()
    assert output.read_text().endswith("at exit\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_and_is_told(server: ForkServer, output: Path, number: int) -> None:
    forked = code(server, "import time; print('up', flush=True); time.sleep(600)", output)
    wait_until(output.read_text, "it runs")
    assert forked.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        forked.wait(0.1)
    forked.send_signal(number)
    assert forked.wait(20) == -number


def test_its_group_can_be_killed_at_once(server: ForkServer, output: Path) -> None:
    for _ in range(20):
        forked = code(server, "import time; time.sleep(600)", output)
        os.killpg(forked.pid, signal.SIGKILL)
        assert forked.wait(20) == -signal.SIGKILL


def test_what_it_has_started_ends_with_the_server(output: Path) -> None:
    server = ForkServer(ROOT)
    forked = code(server, "import time; print('up', flush=True); time.sleep(600)", output)
    wait_until(output.read_text, "it runs")
    server.close()
    wait_until(lambda: not Path(f"/proc/{forked.pid}/cmdline").exists(), "it has ended")
