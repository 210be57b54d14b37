"""Sees to it that the PostgreSQL and the RabbitMQ that the tests need answer: python3 tools/servers.py ensure

For each of the two, the first of these that works:

1. the server that DATABASE_URL / BROKER_URL names (then it must answer: nothing is started or installed);
2. one that answers at the usual address, 127.0.0.1:5432 as user postgres / 127.0.0.1:5672 as guest;
3. the machine's own installed service, started (as root);
4. a private one from the installed programs, in a temporary directory, for the length of the run;
5. a container, if an engine answers, for the length of the run;
6. Debian's package, installed (as root), then as 4.

Otherwise it says what to do. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.private_servers import (
    HOST,
    PrivatePostgres,
    PrivateRabbitMQ,
    ServerFailed,
    ServerMissing,
    accepts,
    amqp_auth,
    free_port,
    postgres_auth,
    wait_until,
)


class NoServer(Exception):
    """The message says what a person can do."""


@dataclass(frozen=True)
class Need:
    name: str
    variable: str
    usual: str
    answers: Callable[[SplitResult], bool]
    services: Callable[[], list[list[str]]]
    private: type[PrivatePostgres] | type[PrivateRabbitMQ]
    image: str
    container_options: tuple[str, ...]
    package: str


def _postgres_answers(url: SplitResult) -> bool:
    said = postgres_auth(
        url.hostname or HOST, url.port or 5432, unquote(url.username or "postgres"), url.path.strip("/") or "postgres"
    )
    return said == "ok" or (said == "password" and bool(url.password))


def _rabbitmq_answers(url: SplitResult) -> bool:
    host, port = url.hostname or HOST, url.port or 5672
    if url.scheme == "amqps":
        return accepts(port, host)
    return amqp_auth(host, port, unquote(url.username or "guest"), unquote(url.password or "guest")) == "ok"


def _postgres_services() -> list[list[str]]:
    clusters = sorted(Path("/etc/postgresql").glob("*/main"), reverse=True)
    start = ["pg_ctlcluster", "--skip-systemctl-redirect"]
    return [[*start, path.parent.name, "main", "start"] for path in clusters]


NEEDS = [
    Need(
        "PostgreSQL",
        "DATABASE_URL",
        f"postgresql://postgres@{HOST}:5432/postgres",
        _postgres_answers,
        _postgres_services,
        PrivatePostgres,
        "postgres:15",
        ("-e", "POSTGRES_HOST_AUTH_METHOD=trust"),
        "postgresql",
    ),
    Need(
        "RabbitMQ",
        "BROKER_URL",
        f"amqp://guest:guest@{HOST}:5672//",
        _rabbitmq_answers,
        lambda: [["rabbitmq-server", "-detached"]],
        PrivateRabbitMQ,
        "rabbitmq:3",
        (),
        "rabbitmq-server",
    ),
]


@contextlib.contextmanager
def ensured() -> Iterator[dict[str, str]]:
    """DATABASE_URL and BROKER_URL of servers that answer; what was started for the run alone ends with it."""
    with contextlib.ExitStack() as stack:
        yield {need.variable: _ensure(need, stack) for need in NEEDS}


def _ensure(need: Need, stack: contextlib.ExitStack) -> str:
    given = os.environ.get(need.variable)
    if given:
        if not need.answers(urlsplit(given)):
            raise NoServer(f"{need.variable} is set, but no {need.name} lets us in there.")
        return given
    if need.answers(urlsplit(need.usual)):
        return _say(need, need.usual, "answers at")
    root = os.geteuid() == 0
    if root and _start_service(need):
        return _say(need, need.usual, "was stopped; its service now answers at")
    with contextlib.suppress(ServerMissing):
        return _say(need, stack.enter_context(need.private()).url, "runs privately, for this run only, at")
    if _quiet("docker", "info"):
        with contextlib.suppress(ServerFailed):
            return _say(need, stack.enter_context(_container(need)), "runs in a container, for this run only, at")
    if root and shutil.which("apt-get"):
        print(f"{need.name}: installing Debian's {need.package}", flush=True)
        _quiet("apt-get", "update")
        _quiet("apt-get", "install", "-y", "--no-install-recommends", need.package)
        with contextlib.suppress(ServerMissing):
            return _say(need, stack.enter_context(need.private()).url, "runs privately, for this run only, at")
    raise NoServer(
        f"The tests need {need.name}, and none was found. One of these helps:\n"
        f"  - install its programs (Debian: apt-get install {need.package}); the tests then run a private one\n"
        f"  - start Docker; the tests then run {need.image} in a container\n"
        f"  - set {need.variable} to a server for tests, such as {need.usual}"
    )


def _say(need: Need, url: str, how: str) -> str:
    print(f"{need.name} {how} {url}", flush=True)
    return url


def _start_service(need: Need) -> bool:
    for command in need.services():
        if shutil.which(command[0]) and _quiet(*command):
            with contextlib.suppress(ServerFailed):
                wait_until(lambda: need.answers(urlsplit(need.usual)), 60, need.name, every=0.25)
                return True
    return False


@contextlib.contextmanager
def _container(need: Need) -> Iterator[str]:
    usual = urlsplit(need.usual)
    port, name = free_port(), f"reliable-jobs-{need.package}-{os.getpid()}"
    url = need.usual.replace(f":{usual.port}/", f":{port}/")
    run = ["docker", "run", "-d", "--rm", "--name", name, "-p", f"{HOST}:{port}:{usual.port}", *need.container_options]
    try:
        if not _quiet(*run, need.image):
            raise ServerFailed(f"docker could not run {need.image}")
        wait_until(lambda: need.answers(urlsplit(url)), 120, f"{need.name} in a container", every=0.25)
        yield url
    finally:
        _quiet("docker", "rm", "-f", name)


def _quiet(*command: str) -> bool:
    """Run a command with nothing attached (a daemon that it starts would keep a pipe open); True if it succeeded."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    nowhere = subprocess.DEVNULL
    try:
        done = subprocess.run(command, env=env, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=900)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def main() -> int:
    if sys.argv[1:] != ["ensure"]:
        print(__doc__)
        return 2
    try:
        with ensured():
            return 0
    except (NoServer, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
