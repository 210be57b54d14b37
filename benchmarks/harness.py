"""Databases, queues, processes and clocks that the benchmarks share.

One run of one contender is an :class:`Arena`: a database copied from a template that its migrations made, a queue of
its own, processes of its own; all gone afterwards. Rounds go through all contenders before the next round begins, so
that a machine that slows down slows all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import psycopg
from kombu import Connection

from benchmarks import machine
from benchmarks.rivals import NotRun, Rival, load

ROOT = Path(__file__).resolve().parent.parent
DATABASE_URL = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
BROKER_URL = os.environ.get("BROKER_URL", "amqp://guest:guest@127.0.0.1:5672//")
#: Everything that is made on the servers begins with this.
PREFIX = f"rj_bench_{os.getpid()}"
#: One name for all, because rows that are copied with a database hold it; made anew for every run.
QUEUE = f"{PREFIX}_jobs"
#: The settings of PostgreSQL that head the report.
SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "autovacuum")
#: Jobs that the workers do before the clock starts.
WARM = 200

_T = TypeVar("_T")


class Void(Exception):
    """The run does not count: an effect is missing or doubled, or a process failed."""


@dataclasses.dataclass(frozen=True)
class Contender:
    label: str
    #: "module:Class" below benchmarks.rivals.
    rival: str
    #: Given to the benchmark's ``measure`` as keyword arguments.
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    #: The label that its ratio is taken against, if not the benchmark's baseline.
    against: str = ""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What a module of this package offers as ``BENCHMARK``."""

    #: What is measured and how, printed above the tables.
    about: str
    contenders: Sequence[Contender]
    #: One run: figures by name, such as {"jobs/s": 712.0}. Raises Void or NotRun.
    measure: Callable[..., dict[str, float]]
    #: Arguments for ``measure`` by default and with ``--quick``.
    normal: Mapping[str, Any]
    quick: Mapping[str, Any]
    #: The label that ratios are taken against.
    baseline: str
    rounds: int = 3


# --- servers ----------------------------------------------------------------------------------------------------------


class Servers:
    """What this run has made on the servers, and its removal."""

    def __init__(self, url: str = DATABASE_URL) -> None:
        self._url = url
        self._admin = psycopg.connect(url, autocommit=True)
        self._templates: dict[Any, str] = {}
        self.databases: list[str] = []
        self._serial = 0
        self.directory = tempfile.TemporaryDirectory(prefix=PREFIX)

    def name(self) -> str:
        self._serial += 1
        return f"{PREFIX}_{self._serial}"

    def url_of(self, database: str) -> str:
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{database}"))

    def _execute(self, statement: str) -> psycopg.Cursor[Any]:
        try:
            return self._admin.execute(statement)
        except psycopg.OperationalError:
            if not self._admin.closed:
                raise
            # The server was restarted since the last statement.
            self._admin = psycopg.connect(self._url, autocommit=True)
            return self._admin.execute(statement)

    def show(self, setting: str) -> str:
        row = self._execute(f"SHOW {setting}").fetchone()
        return str(row[0]) if row else ""

    def checkpoint(self) -> None:
        """So that no contender pays for the pages that the one before it has dirtied."""
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            self._execute("CHECKPOINT")

    def new_database(self, template: str | None = None) -> str:
        name = self.name()
        copied = f' TEMPLATE "{template}"' if template else ""
        self.databases.append(name)
        self._execute(f'CREATE DATABASE "{name}"{copied}')
        return name

    def drop_database(self, name: str) -> None:
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self.databases.remove(name)

    def declare_queue(self, name: str, arguments: Mapping[str, Any]) -> None:
        """A classic durable queue, as Celery declares it itself by default."""
        with Connection(BROKER_URL) as connection, connection.channel() as channel:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)

    def delete_queue(self, name: str) -> None:
        """With the exchange that Celery declares beside it."""
        with Connection(BROKER_URL) as connection, connection.channel() as channel:
            channel.queue_delete(name)
            channel.exchange_delete(name)

    def template(self, key: Any, parent: str | None, make: Callable[[str], None]) -> str:
        """The database of this key, made on first use from its parent; every later use copies it."""
        if key not in self._templates:
            name = self.new_database(parent)
            make(name)
            self._templates[key] = name
        return self._templates[key]

    def close(self) -> None:
        for name in list(self.databases):
            self.drop_database(name)
        self.delete_queue(QUEUE)
        self._admin.close()
        self.directory.cleanup()


# --- one run of one contender -----------------------------------------------------------------------------------------


class Arena:
    """A database, a queue and the processes of one contender's run."""

    def __init__(self, servers: Servers, contender: Contender) -> None:
        self.rival: Rival = load(contender.rival)
        self._servers, self._contender = servers, contender
        self.queue = QUEUE
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []
        self._never_stopped: list[subprocess.Popen[bytes]] = []
        self._database = ""
        self._connection: psycopg.Connection[Any] | None = None

    def open(self, prepare: Callable[[Arena], None] | None = None) -> None:
        """Make the database. What ``prepare`` does to it is done once, and kept for the contender's next rounds."""

        # Contenders that differ only in their settings have the same tables.
        tables = (type(self.rival).install, type(self.rival).apps)
        template = self._servers.template(tables, None, lambda name: self._make(name, _install))
        if prepare is not None:
            template = self._servers.template((*tables, prepare), template, lambda name: self._make(name, prepare))
        self._database = self._servers.new_database(template)
        self._servers.declare_queue(self.queue, self.rival.queue_arguments)
        self._servers.checkpoint()

    def on(self, servers: Servers) -> Arena:
        """Another run of the same contender, on these servers."""
        return Arena(servers, self._contender)

    def server_settings(self) -> dict[str, str]:
        """For a server that is to be set up as this one."""
        return {setting: self._servers.show(setting) for setting in SETTINGS}

    def _make(self, name: str, make: Callable[[Arena], None]) -> None:
        self._database = name
        make(self)
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection of :meth:`sql`, which makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def drop(self) -> None:
        """End the processes and drop the database and the queue; :meth:`open` makes them anew."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()
        self._logs.clear()
        self.disconnect()
        if self._database in self._servers.databases:
            self._servers.drop_database(self._database)
        self._servers.delete_queue(self.queue)

    # --- processes ----------------------------------------------------------------------------------------------------

    def spawn(self, function: str, **arguments: Any) -> None:
        """Start what :meth:`child` calls, without waiting for it; what it answers is dropped."""
        self._start([sys.executable, "-m", "benchmarks.child", function, json.dumps(arguments)])

    @property
    def environment(self) -> dict[str, str]:
        url = self._servers.url_of(self._database)
        # Bytecode is compiled once per run, wherever the caller stands on writing it.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {
            **inherited,
            "PYTHONPYCACHEPREFIX": self._servers.directory.name,
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "benchmarks.project.settings",
            "DATABASE_URL": url,
            "BROKER_URL": BROKER_URL,
            "BENCHMARK_RIVAL": self._contender.rival,
            "BENCHMARK_QUEUE": self.queue,
            **self.rival.environment(url),
        }

    def child(self, function: str, **arguments: Any) -> Any:
        """Call a function in a fresh process with Django set up; see child.py.

        Raises:
            NotRun: the function did.
            Void: the process failed; with the end of what it said.
        """
        reader, writer = os.pipe()
        process, log = self._start(
            [sys.executable, "-m", "benchmarks.child", function, json.dumps(arguments)],
            {"BENCHMARK_ANSWER": str(writer)},
            (writer,),
        )
        os.close(writer)
        with os.fdopen(reader) as answers:
            text = answers.read()
        if process.wait() or not text:
            raise Void(f"{function} failed: {_tail(log)}")
        answer = json.loads(text)
        if "not_run" in answer:
            raise NotRun(answer["not_run"])
        return answer["answer"]

    def start(self, commands: list[list[str]]) -> None:
        for command in commands:
            self._start(command)

    def _start(
        self, command: list[str], extra: Mapping[str, str] | None = None, keep: Sequence[int] = ()
    ) -> tuple[subprocess.Popen[bytes], Path]:
        log = Path(self._servers.directory.name) / f"{self._servers.name()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**self.environment, **(extra or {})},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=keep,
            )
        self._processes.append(process)
        self._logs.append(log)
        return process, log

    def alive(self) -> list[int]:
        """The ids of the processes that were started and have not ended, the oldest first."""
        return [process.pid for process in self._processes if process.poll() is None]

    def forget_ended(self) -> int:
        """For a caller that expects processes to end: forget those that have, and kill what they have left behind.
        Returns how many they were."""
        started = list(zip(self._processes, self._logs, strict=True))
        ended = [(process, log) for process, log in started if process.poll() is not None]
        for process, _ in ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        going_on = [one for one in started if one not in ended]
        # New lists, for another thread that may be reading these.
        self._processes, self._logs = [process for process, _ in going_on], [log for _, log in going_on]
        return len(ended)

    def check_processes(self) -> None:
        for process, log in zip(self._processes, self._logs, strict=True):
            if process.poll():
                raise Void(f"a process ended with {process.returncode}: {_tail(log)}")

    def wait_until(self, condition: Callable[[], _T], what: str, seconds: float, every: float = 0.01) -> _T:
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            self.check_processes()
            if time.monotonic() > deadline:
                said = " | ".join(filter(None, map(_tail, self._logs)))
                raise Void(f"not within {seconds:g} s: {what}. {said}")
            time.sleep(every)
        return answer

    # --- looking at the servers ---------------------------------------------------------------------------------------

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = psycopg.connect(self._servers.url_of(self._database), autocommit=True)
        cursor = self._connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def number(self, statement: str) -> int:
        return int(self.sql(statement)[0][0])

    def messages(self) -> int:
        """Ready messages in the queue."""
        with self.counting() as count:
            return count()

    @contextlib.contextmanager
    def counting(self) -> Iterator[Callable[[], int]]:
        """A function that counts the queue's ready messages, on a connection that is kept meanwhile."""
        with Connection(BROKER_URL) as connection, connection.channel() as channel:
            yield lambda: int(channel.queue_declare(self.queue, passive=True).message_count)

    def require(self, what: str, found: int, wanted: int) -> None:
        if found != wanted:
            raise Void(f"{found:,} {what} instead of {wanted:,}")

    # --- working ------------------------------------------------------------------------------------------------------

    def start_workers(self) -> None:
        """Start the contender's workers and let them do WARM jobs."""
        running = len(self._processes)
        self.start(self.rival.servers())
        self._never_stopped = self._processes[running:]
        self.start([*self.rival.workers(), *self.rival.relays()])
        self.child("benchmarks.child:fill", count=WARM, first=-WARM)
        self.wait_for_effects(WARM, 90)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop every worker (SIGSTOP) between two jobs, and let them go on at the end of the block.

        So that a full queue and warm workers are there when the clock starts, for those who poll as for those who are
        sent messages.
        """
        for _ in range(50):
            self._signal(signal.SIGSTOP)
            # A worker stopped inside a transaction might hold a lock that the filling waits for.
            if not self.number(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND state <> 'idle' AND backend_type = 'client backend'"
            ):
                break
            self._signal(signal.SIGCONT)
            time.sleep(0.05)
        else:
            raise Void("the workers do not come to rest")
        already = len(self._processes)
        yield
        self._signal(signal.SIGCONT, already)

    def _signal(self, number: int, first: int | None = None) -> None:
        for process in self._processes[:first]:
            if process.poll() is None and not (process in self._never_stopped and number == signal.SIGSTOP):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def refill(self, count: int, function: str = "benchmarks.child:fill") -> Any:
        """Empty the effects and fill the queue with jobs 0 to ``count`` - 1. Call it while paused. Returns what the
        function says."""
        self.sql("TRUNCATE benchmark_effect RESTART IDENTITY")
        said = self.child(function, count=count)
        self.sql("ANALYZE")
        self._servers.checkpoint()
        return said

    def wait_for_effects(self, count: int, seconds: float) -> datetime.datetime:
        """Wait until ``count`` effects are committed. Returns the server's time at which they were seen."""

        def complete() -> Any:
            # The sequence costs nothing to read; the table is counted only when it can be complete.
            if self.number("SELECT last_value FROM benchmark_effect_id_seq") < count:
                return None
            found, now = self.sql("SELECT count(*), clock_timestamp() FROM benchmark_effect")[0]
            return now if found >= count else None

        try:
            seen: datetime.datetime = self.wait_until(complete, f"{count:,} effects", seconds)
            return seen
        except Void as void:
            raise Void(f"{void} ({self.number('SELECT count(*) FROM benchmark_effect'):,} effects are there)") from None

    def wait_for_statistics(self, effects: int) -> None:
        """Wait until the workers' sessions have told the server's statistics of all that they have done.

        Args:
            effects: rows inserted into benchmark_effect since the workers were started, WARM included. A session tells
                of all its tables at once; one that has gone idle does so after ten seconds (PostgreSQL 15).
        """
        told = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'benchmark_effect'"
        self.wait_until(lambda: self.number(told) >= effects, "the statistics of all sessions", 30, every=0.1)

    def end_processes(self) -> None:
        """Ask every process to end, and wait until it has: what it was sending is sent, and nothing more will be."""
        self._signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(30)

    def check_effects(self, count: int) -> None:
        """Exactly one effect of each of the jobs 0 to ``count`` - 1."""
        time.sleep(0.3)  # for a second effect of a job that was done twice
        found, distinct, least, most = self.sql(
            "SELECT count(*), count(DISTINCT number), min(number), max(number) FROM benchmark_effect"
        )[0]
        if (found, distinct, least, most) != (count, count, 0, count - 1):
            raise Void(f"{found:,} effects of {distinct:,} jobs ({least} to {most}) instead of {count:,} of {count:,}")
        self.check_processes()

    def drain(self, count: int, seconds: float) -> float:
        """With ``count`` jobs waiting and the workers let go: jobs per second from the first effect until all are
        committed, and each is there once."""
        return self.rate(count, self.wait_for_effects(count, seconds))

    def rate(self, count: int, finished: datetime.datetime) -> float:
        """Jobs per second from the first effect to ``finished``, if each is there once."""
        self.check_effects(count)
        started = self.sql("SELECT min(at) FROM benchmark_effect")[0][0]
        return float(count / (finished - started).total_seconds())

    def cpu_seconds(self) -> dict[str, float]:
        """See :func:`benchmarks.machine.cpu_seconds`."""
        return machine.cpu_seconds(process.pid for process in self._processes)


def _install(arena: Arena) -> None:
    arena.child("benchmarks.child:install")


def _tail(log: Path, lines: int = 3) -> str:
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(said[-lines:])[-600:]


# --- rounds and tables ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """All rounds of one contender."""

    figures: list[dict[str, float]] = dataclasses.field(default_factory=list)
    not_run: str = ""
    void: str = ""


def run(benchmark: Benchmark, rounds: int, quick: bool, servers: Servers) -> tuple[dict[str, Outcome], list[float]]:
    """All rounds. Returns what came of each contender, and the load average before each round."""
    outcomes = {contender.label: Outcome() for contender in benchmark.contenders}
    loads: list[float] = []
    sizes = benchmark.quick if quick else benchmark.normal
    print(f"   {', '.join(f'{name} {value}' for name, value in sizes.items())}", flush=True)
    for number in range(rounds):
        loads.append(os.getloadavg()[0])
        print(f"   round {number + 1} of {rounds}; load {loads[-1]:.2f}", flush=True)
        for contender in benchmark.contenders:
            outcome = outcomes[contender.label]
            if not outcome.not_run and not outcome.void:
                _once(benchmark, contender, sizes, servers, outcome)
    return outcomes, loads


def _once(
    benchmark: Benchmark, contender: Contender, sizes: Mapping[str, Any], servers: Servers, outcome: Outcome
) -> None:
    try:
        arena = Arena(servers, contender)
    except NotRun as reason:
        outcome.not_run = str(reason)
        return
    try:
        outcome.figures.append(benchmark.measure(arena, **{**sizes, **contender.options}))
    except NotRun as reason:
        outcome.not_run = str(reason)
    except Void as reason:
        outcome.void = str(reason)
    finally:
        arena.drop()


def print_tables(benchmark: Benchmark, outcomes: Mapping[str, Outcome]) -> None:
    """A table per figure: median, range, and ratio to the baseline's median."""
    names = list(dict.fromkeys(name for outcome in outcomes.values() for row in outcome.figures for name in row))
    width = max(len(word) for word in (*outcomes, *names))
    for name in (names := names or [""]):
        print(f"\n   {name:{width}}{'median':>12}{'min - max':>23}   ratio to {benchmark.baseline!r}")
        for contender in benchmark.contenders:
            label, outcome = contender.label, outcomes[contender.label]
            values, base = _values(outcome, name), _values(outcomes[contender.against or benchmark.baseline], name)
            if outcome.void:
                print(f"   {label:{width}}        VOID: {outcome.void}")
            elif outcome.not_run and name == names[0]:
                print(f"   {label:{width}}        not run: {outcome.not_run}")
            elif values:
                spread = f"{_format(min(values))} - {_format(max(values))}"
                beside = statistics.median(base) if base else 0
                ratio = f"{statistics.median(values) / beside:.2f}" if beside else "-"
                to = f" (to {contender.against!r})" if contender.against else ""
                print(f"   {label:{width}}{_format(statistics.median(values)):>12}{spread:>23}   {ratio}{to}")
    print(flush=True)


def _values(outcome: Outcome, name: str) -> list[float]:
    return [] if outcome.void else [row[name] for row in outcome.figures if name in row]


def _format(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def head(benchmarks: Mapping[str, Benchmark], servers: Servers) -> dict[str, str]:
    """What a reader needs to compare with figures of another day or machine.

    Raises:
        SystemExit: the server does not make commits durable; then no figure means anything.
    """
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}",
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        "PostgreSQL": servers.show("server_version"),
    }
    for setting in SETTINGS:
        facts[setting] = servers.show(setting)
    if facts["fsync"] != "on" or facts["synchronous_commit"] != "on":
        raise SystemExit("The server runs with fsync or synchronous_commit off; no contender is durable on it.")
    with Connection(BROKER_URL) as connection:
        connection.connect()
        properties = connection.connection.server_properties
        facts[properties.get("product", "broker")] = str(properties.get("version", "?"))
    facts["queues"] = "classic, durable; messages persistent; confirms on"
    wanted = {"django", "psycopg", *_distributions(benchmarks)}
    facts["packages"] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(wanted))
    return facts


def _distributions(benchmarks: Mapping[str, Benchmark]) -> set[str]:
    found: set[str] = set()
    for benchmark in benchmarks.values():
        for contender in benchmark.contenders:
            with contextlib.suppress(NotRun):
                found.update(load(contender.rival).distributions)
    return found
