"""Fixtures in place of the suite's: its worker is a real process, and its apps make tasks of the kind that is tried."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.utils.nodenames import anon_nodename

from qa.contract.app import PARAMETERS

#: Seconds for the worker to start, and to end.
PATIENCE = 60.0


@pytest.fixture(scope="session")
def celery_parameters() -> dict[str, Any]:
    return dict(PARAMETERS)


@pytest.fixture(scope="session")
def celery_session_worker(celery_session_app: Any, celery_includes: Any, celery_class_tasks: Any) -> Iterator[Any]:
    for module in celery_includes:
        celery_session_app.loader.import_task_module(module)
    for task in celery_class_tasks:
        celery_session_app.register_task(task)
    log = Path(os.environ["CONTRACT_LOG"])
    # They look for the worker under this name.
    argv = [sys.executable, "-m", "celery", "-A", "qa.contract.app", "worker", "-c", "1", "-n", anon_nodename()]
    argv += ["-l", "INFO"]
    with log.open("ab") as output:
        worker = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE
        # Not the suite's own wait_until: that package makes our tests' app, and these tests have one of theirs.
        while " ready." not in log.read_text(errors="replace"):
            assert worker.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.1)
        yield worker
    finally:
        worker.terminate()
        try:
            worker.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
