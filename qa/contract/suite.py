"""One run of the suite: servers, a database and a worker of its own, and what became of each test."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from qa.contract.kinds import Kind
from qa.contract.sdist import FOLDER, ROOT
from tests.support.private_servers import PrivateRabbitMQ, PrivateRedis

#: No configuration of ours is read, and nothing repeats a test that fails, as their marks would have it: what needs
#: repeating is what we want to see.
_PYTEST = (
    *(sys.executable, "-m", "pytest", "t/integration", "-q", "-c", os.devnull, "-o", "python_classes=test_*"),
    *("--timeout=60", "--continue-on-collection-errors", "-W", "ignore", "-p", "celery.contrib.pytest"),
    *("-p", "no:rerunfailures", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:django", "-p", "no:xdist"),
)


def run(kind: Kind, suite: Path, arguments: Sequence[str]) -> dict[str, str]:
    """Run the suite once. Returns by test "passed", "skipped", or the first line of its error.

    Args:
        suite: the folder that holds ``t/``.
        arguments: further ones for pytest.

    Raises:
        RuntimeError: pytest came to no end of its own.
    """
    folder = FOLDER / "runs" / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    server = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
    name = f"contract_{os.getpid()}_{uuid.uuid4().hex[:6]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        with PrivateRabbitMQ() as broker, PrivateRedis() as redis:
            env = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(suite), str(ROOT)]),
                "DJANGO_SETTINGS_MODULE": "qa.contract.settings",
                "CONTRACT_DATABASE_URL": urlunsplit(urlsplit(server)._replace(path=f"/{name}")),
                "CONTRACT_RELIABLE": "1" if kind.reliable else "0",
                "CONTRACT_LOG": str(folder / "worker.log"),
                "TEST_BROKER": broker.url,
                "TEST_BACKEND": kind.backend.replace("redis://", redis.url),
                "REDIS_HOST": "127.0.0.1",
                "REDIS_PORT": str(redis.port),
            }
            migrate = [sys.executable, "-m", "django", "migrate", "-v", "0", "--skip-checks"]
            subprocess.run(migrate, env=env, cwd=suite, stdin=subprocess.DEVNULL, check=True)
            with (folder / "pytest.log").open("wb") as output:
                done = subprocess.run(
                    [
                        *_PYTEST,
                        f"--rootdir={suite}",
                        f"--confcutdir={suite}",
                        f"--junitxml={folder / 'junit.xml'}",
                        *arguments,
                    ],
                    env=env,
                    cwd=suite,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{kind.name}: pytest ended with {done.returncode}; see {folder / 'pytest.log'}")
    return last_run(kind)


def last_run(kind: Kind) -> dict[str, str]:
    """What :func:`run` returned last; {} where there was none."""
    report = FOLDER / "runs" / kind.name / "junit.xml"
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        name = f"{case.get('classname', '').rpartition('t.integration.')[2]}.{case.get('name')}"
        verdict = "passed"
        for child in case:
            if child.tag in ("failure", "error"):
                verdict = (child.get("message") or child.tag).strip().splitlines()[0]
            elif child.tag == "skipped":
                verdict = "skipped"
        found[name] = verdict
    return found
