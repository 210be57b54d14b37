"""Where a campaign takes place: servers of its own, hosts with their networks, processes that are started again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qa.chaos import instruments, ledger, servers
from qa.chaos.members import Member
from qa.chaos.sites import SITES, Site
from tests.support.harness import ROOT, wait_until
from tests.support.private_servers import CuttableProxy

#: Each has a network of its own to either server.
HOSTS = ("web", "work-a", "work-b", "keep")
_CELERY = [sys.executable, "-m", "celery", "-A", "tests.celery_app"]
_QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat"]


class World:
    """Servers, hosts, processes, and what can be known of them from outside.

    Args:
        settings: entries of RELIABLE_JOBS.
    """

    def __init__(self, seed: int, site: Site = SITES["plain"], **settings: Any) -> None:
        self.seed = seed
        self.site = site
        self.settings = settings
        self._exit = contextlib.ExitStack()
        self.members: list[Member] = []
        self._control: Any = None
        self._lock = threading.Lock()
        self._wishes = 0
        #: As of the last look: see :meth:`unfinished`.
        self.last_unfinished: list[str] = []

    def __enter__(self) -> World:
        try:
            self.directory = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="rj-chaos-")))
            with ThreadPoolExecutor() as both:
                starting = both.submit(servers.broker, self.site.broker, self._exit)
                self.database = servers.database(
                    self.site.database, self._exit, self.directory, pooler=self.site.pooler
                )
                self.broker = starting.result()
            # A host's (broker, database).
            self.networks = {
                host: tuple(self._proxy(port) for port in (self.broker.port, self.database.port) if port)
                for host in HOSTS
            }
            (self.directory / "wishes").mkdir()
            self.ledger = ledger.Reader(self.directory / "ledger")
            self._migrate()
            self._exit.callback(self._end_members)
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exit.close()

    def _migrate(self) -> None:
        argv = [sys.executable, "-m", "django", "migrate", "--verbosity", "0", "--no-input"]
        done = subprocess.run(argv, env=self.environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"migrate failed\n{done.stdout}{done.stderr}")

    def environment(self, host: str | None = None, **more: Any) -> dict[str, str]:
        """Of a process on that host, or of one with a network that nobody breaks."""
        ports = [proxy.port for proxy in self.networks[host]] if host else [self.broker.port, self.database.port]
        # Celery's command takes BROKER_URL for its own; whoever runs this may have it set.
        not_for_it = ("TEST_", "COV_", "BROKER_URL", "DATABASE_URL", "CELERY_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(not_for_it)}
        return {
            **env,
            "DJANGO_SETTINGS_MODULE": self.site.settings,
            "BROKER_PORT": str(ports[0]),
            "DATABASE_PORT": str(ports[1]) if ports[1:] and ports[1] else "",
            "DATABASE_NAME": self.database.name,
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            **{name: str(value) for name, value in more.items() if name.startswith("TEST_")},
            "CHAOS_RELIABLE_JOBS": json.dumps(
                {**self.settings, **{name: value for name, value in more.items() if not name.startswith("TEST_")}}
            ),
        }

    def _proxy(self, port: int) -> CuttableProxy:
        return self._exit.enter_context(CuttableProxy(port))

    # --- processes ----------------------------------------------------------------------------------------------------

    def add(self, name: str, role: str, host: str, argv: Callable[[int], list[str]], **entries: Any) -> Member:
        """Start a process that is started again whenever it ends. ``argv`` gets the number of the start.

        Args:
            entries: of RELIABLE_JOBS, besides those of the world.
        """
        env = self.environment(
            host,
            **{ledger.VARIABLE: self.ledger.path, instruments.CLOCK: self.directory / f"{name}.clock"},
            **entries,
        )
        member = Member(name, role, host, argv, env, self.directory)
        self.members.append(member)
        return member

    def add_worker(self, name: str, host: str, *, pool: str = "prefork", concurrency: int = 3) -> Member:
        argv = [*_CELERY, "worker", "-l", "INFO", "-P", pool, "-c", str(concurrency), *_QUIET]
        return self.add(name, f"{pool} worker", host, lambda life: [*argv, "-n", f"{name}.{life}@chaos"])

    def add_producer(self, name: str, dispatch: str, per_second: float) -> Member:
        tail = [str(self.seed), str(per_second), str(self.directory)]
        argv = [sys.executable, "-m", "qa.chaos.producer"]
        return self.add(name, "producer", "web", lambda life: [*argv, f"{name}.{life}", *tail], DISPATCH=dispatch)

    def add_beat(self) -> Member:
        argv = [*_CELERY, "beat", "-l", "INFO", "--pidfile=", "-S", "django_celery_beat.schedulers:DatabaseScheduler"]
        return self.add("beat", "beat", "keep", lambda life: argv)

    def add_relay(self) -> Member:
        argv = [sys.executable, "-m", "django", "reliable_jobs_relay"]
        return self.add("relay", "relay", "keep", lambda life: argv, DISPATCH="relay")

    def by_role(self, *roles: str) -> list[Member]:
        return [member for member in self.members if any(role in member.role for role in roles)]

    def tick(self) -> None:
        """What systemd does: start again what has ended. Also takes in the ledger."""
        with self._lock:
            for member in self.members:
                member.keep_alive()
            self.ledger.read()

    def stop(self, members: list[Member]) -> None:
        """End processes in order, for good."""
        for member in members:
            member.dismiss()
        for member in members:
            wait_until(lambda member=member: not member.process.alive, f"{member.name} ends when told to")
            self.members.remove(member)

    def _end_members(self) -> None:
        for member in self.members:
            member.end()

    # --- from outside -------------------------------------------------------------------------------------------------

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]] | None:
        """Rows, straight from the server; None while it does not answer."""
        found = self.rows(statement, *parameters)
        return None if found is None else found[1]

    def rows(self, statement: str, *parameters: Any) -> tuple[list[str], list[tuple[Any, ...]]] | None:
        """Names of the columns, and the rows; None while the server does not answer."""
        if self.site.database == "sqlite":
            statement = statement.replace("%s", "?")
        with self._lock:
            for _ in range(2):
                try:
                    if self._control is None:
                        self._control = self.database.connect()
                    cursor = self._control.cursor()
                    cursor.execute(statement, *([parameters] if parameters else []))
                    names = [column[0] for column in cursor.description or ()]
                    return names, [tuple(row) for row in cursor.fetchall()] if names else []
                except self.database.errors:
                    if self._control is not None:
                        with contextlib.suppress(Exception):
                            self._control.close()
                    self._control = None
        return None

    def unfinished(self, *, due: bool = True) -> list[str] | None:
        """Ids of jobs that are to be done now, or at all; None while the database does not answer."""
        condition = f"AND due_at <= {self.database.now}" if due else ""
        rows = self.query(
            f"SELECT id FROM reliable_jobs_job WHERE status IN ('waiting', 'running') {condition} LIMIT 5000"
        )
        groups = [] if due else self.open_groups()
        if rows is None or groups is None:
            return None
        found = [*(job_id(row[0]) for row in rows), *groups]
        if due:
            self.last_unfinished = found
        return found

    def open_groups(self) -> list[str] | None:
        """Ids of chords that nobody has decided; None while the database does not answer."""
        rows = self.query("SELECT id FROM reliable_jobs_jobgroup WHERE state = 'open'")
        return None if rows is None else [job_id(row[0]) for row in rows]

    def unsent(self) -> int:
        """Rows that wait for a relay or sweeper, now or soon."""
        rows = self.query("SELECT count(*) FROM reliable_jobs_job WHERE status = 'waiting' AND sends = 0")
        return rows[0][0] if rows else 0

    def depth(self) -> int:
        """Messages that are ready. Raises what a broker's client raises while it is away."""
        return self.broker.depth()

    def in_body(self, member: Member) -> set[int]:
        """Its processes that are in the middle of a body, by the ledger."""
        with self._lock:
            return self.ledger.read().in_body(member.pids())

    def still_in_body(self, pids: set[int]) -> set[int]:
        """Those of the processes whose last word was that a body has begun; for the dead it is the last for ever."""
        with self._lock:
            return self.ledger.read().in_body(pids)

    def note_kill(self, pids: set[int]) -> None:
        """To be called right before the campaign ends these processes."""
        ledger.append(str(self.ledger.path), "kills", pids=sorted(pids))

    def poison_starts(self) -> int:
        with self._lock:
            return self.ledger.read().poison_starts

    def has_open_order(self, member: Member) -> bool:
        with self._lock:
            return self.ledger.read().has_open_order(member.process.popen.pid)

    def wish(self, way: str) -> str:
        """Ask whichever producer comes first for a poison job; returns what the file is called."""
        self._wishes += 1
        name = f"{way}-{self._wishes}"
        (self.directory / "wishes" / name).touch()
        return name

    @contextlib.contextmanager
    def wrong_clock(self, member: Member, seconds: float) -> Iterator[None]:
        path = self.directory / f"{member.name}.clock"
        path.write_text(str(seconds))
        try:
            yield
        finally:
            path.write_text("0")

    def heal(self) -> None:
        """Nothing is broken any more."""
        for proxies in self.networks.values():
            for proxy in proxies:
                proxy.latency = 0.0
                proxy.refuse(False)
                proxy.blackhole(False)
        self.broker.heal()
        self.database.heal()
        for member in self.members:
            member.process.cont()
        self.tick()

    def choose(self, rng: random.Random, members: list[Member], when: Callable[[Member], Any], seconds: float) -> Any:
        """One of them of which it is true within that time, else any of them."""
        deadline = time.monotonic() + seconds
        while True:
            fit = [member for member in members if member.process.alive and when(member)]
            if fit or time.monotonic() > deadline:
                return rng.choice(fit or members)
            time.sleep(0.02)


def job_id(value: Any) -> str:
    """As the ledger writes it, whatever a driver makes of the column."""
    return str(uuid.UUID(str(value)))
