"""Where a campaign takes place: servers of its own, hosts with their networks, processes that are started again."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import amqp
import psycopg

from tests.chaos import instruments, ledger
from tests.chaos.disk import small_disk
from tests.chaos.members import Member
from tests.harness import Stack, wait_until
from tests.private_servers import CuttableProxy, PrivatePostgres, PrivateRabbitMQ

#: Each has a network of its own to either server.
HOSTS = ("web", "work-a", "work-b", "keep")
#: Connection parameters that a careful operator sets: without them a client waits for a dead server for hours.
CAREFUL = "?connect_timeout=5&tcp_user_timeout=10000&keepalives_idle=5&keepalives_interval=2&keepalives_count=3"
#: So that the database's log fits on a small disk.
LITTLE_LOG = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
_CELERY = [sys.executable, "-m", "celery", "-A", "tests.celery_app"]
_QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat"]


class World:
    """Servers, hosts, processes, and what can be known of them from outside.

    Args:
        settings: entries of RELIABLE_JOBS.
    """

    def __init__(self, seed: int, **settings: Any) -> None:
        self.seed = seed
        self.settings = settings
        self._exit = contextlib.ExitStack()
        self.members: list[Member] = []
        self._control: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()
        self._wishes = 0
        #: As of the last look: see :meth:`unfinished`.
        self.last_unfinished: list[str] = []

    def __enter__(self) -> World:
        try:
            with ThreadPoolExecutor() as both:
                self.disk = self._exit.enter_context(small_disk())
                postgres = PrivatePostgres(max_connections=80, settings=LITTLE_LOG, parent=self.disk)
                starting = both.submit(self._exit.enter_context, postgres)
                self.rabbitmq = self._exit.enter_context(PrivateRabbitMQ())
                self.postgres = starting.result()
            self.stack = Stack(self.postgres.url, self.rabbitmq.url, **self.settings)
            self._exit.callback(self.stack.destroy)
            with self.stack.active():
                self.stack.create()
                self.stack.declare()
            # A host's (broker, database).
            self.networks = {host: (self._proxy(self.rabbitmq.port), self._proxy(self.postgres.port)) for host in HOSTS}
            self.directory: Path = self.stack.directory
            (self.directory / "wishes").mkdir()
            self.ledger = ledger.Reader(self.directory / "ledger")
            self._exit.callback(self._end_members)
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exit.close()

    def _proxy(self, port: int) -> CuttableProxy:
        return self._exit.enter_context(CuttableProxy(port))

    # --- processes ----------------------------------------------------------------------------------------------------

    def add(self, name: str, role: str, host: str, argv: Callable[[int], list[str]], **environment: Any) -> Member:
        """Start a process that is started again whenever it ends. ``argv`` gets the number of the start."""
        broker, database = self.networks[host]
        env = self.stack.environment(
            database_url=database.url(self.stack.database_url) + CAREFUL,
            broker_url=broker.url(self.stack.broker_url),
            **{ledger.VARIABLE: self.ledger.path, instruments.CLOCK: self.directory / f"{name}.clock"},
            **environment,
        )
        env["DJANGO_SETTINGS_MODULE"] = "tests.chaos.settings"
        member = Member(name, role, host, argv, env, self.directory)
        self.members.append(member)
        return member

    def add_worker(self, name: str, host: str, *, pool: str = "prefork", concurrency: int = 3) -> Member:
        argv = [*_CELERY, "worker", "-l", "INFO", "-P", pool, "-c", str(concurrency), "-Q", self.stack.queue, *_QUIET]
        return self.add(name, f"{pool} worker", host, lambda life: [*argv, "-n", f"{name}.{life}@chaos"])

    def add_producer(self, name: str, dispatch: str, per_second: float) -> Member:
        tail = [str(self.seed), str(per_second), str(self.directory)]
        argv = [sys.executable, "-m", "tests.chaos.producer"]
        return self.add(name, "producer", "web", lambda life: [*argv, f"{name}.{life}", *tail], TEST_DISPATCH=dispatch)

    def add_beat(self) -> Member:
        argv = [*_CELERY, "beat", "-l", "INFO", "--pidfile=", "-S", "django_celery_beat.schedulers:DatabaseScheduler"]
        return self.add("beat", "beat", "keep", lambda life: argv)

    def add_relay(self) -> Member:
        argv = [sys.executable, "-m", "django", "reliable_jobs_relay"]
        return self.add("relay", "relay", "keep", lambda life: argv, TEST_DISPATCH="relay")

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
        with self._lock:
            for _ in range(2):
                try:
                    if self._control is None:
                        self._control = psycopg.connect(self.stack.database_url, autocommit=True, connect_timeout=3)
                    cursor = self._control.execute(statement, parameters or None)  # type: ignore[arg-type]
                    return cursor.fetchall() if cursor.description else []
                except psycopg.OperationalError:
                    if self._control is not None:
                        self._control.close()
                    self._control = None
        return None

    def unfinished(self, *, due: bool = True) -> list[str] | None:
        """Ids of jobs that are to be done now, or at all; None while the database does not answer."""
        condition = "AND due_at <= now()" if due else ""
        rows = self.query(
            f"SELECT id FROM reliable_jobs_job WHERE status IN ('waiting', 'running') {condition} LIMIT 5000"
        )
        if rows is None:
            return None
        found = [str(row[0]) for row in rows]
        if due:
            self.last_unfinished = found
        return found

    def unsent(self) -> int:
        """Rows that wait for a relay or sweeper, now or soon."""
        rows = self.query("SELECT count(*) FROM reliable_jobs_job WHERE status = 'waiting' AND sends = 0")
        return rows[0][0] if rows else 0

    def depth(self) -> int:
        """Messages that are ready; none where there is no queue, as after a wipe.

        Raises:
            OSError, amqp.AMQPError: the broker is away.
        """
        try:
            return self.rabbitmq.depth(self.stack.queue)
        except amqp.NotFound:
            return 0

    def in_body(self, member: Member) -> set[int]:
        """Its processes that are in the middle of a body, by the ledger."""
        with self._lock:
            return self.ledger.read().in_body(member.pids())

    def still_in_body(self, pids: set[int]) -> set[int]:
        """Those of the processes whose last word was that a body has begun; for the dead it is the last for ever."""
        with self._lock:
            return self.ledger.read().in_body(pids)

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
        for broker, database in self.networks.values():
            for proxy in (broker, database):
                proxy.latency = 0.0
                proxy.refuse(False)
                proxy.blackhole(False)
        self.rabbitmq.start()
        self.postgres.start()
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
