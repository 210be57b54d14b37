"""Real workers, producers and beats around a database and a broker of the test's own.

A `Stack` is one database (made and migrated once) and one queue. While it is active, this process's Django and Celery
use them too, so that a test enqueues, sweeps and looks at rows as an application would. Every process is started in a
process group of its own, waited for by a condition, and ended by its id.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock
from urllib.parse import urlsplit, urlunsplit

import psycopg
from django.core.management import call_command
from django.db import connections
from django.test import override_settings
from kombu import Connection, Producer, Queue

from reliable_jobs.dispatch import publisher as publisher_module
from reliable_jobs.dispatch.publisher import Publisher, publisher
from reliable_jobs.message.row_to_message import HEADER, outgoing
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.sweep import sweeper
from tests.celery_app import app, use_broker
from tests.support.databases import by_hand
from tests.testapp.models import Effect

ROOT = Path(__file__).resolve().parent.parent.parent
DATABASE_URL = "postgresql://postgres@127.0.0.1:5432/postgres"
BROKER_URL = "amqp://guest:guest@127.0.0.1:5672//"
#: Deadline of every wait: a loaded machine is slow, a test that passes never waits so long.
PATIENCE = float(os.environ.get("PATIENCE", "45"))

_T = TypeVar("_T")


def wait_until(condition: Callable[[], _T], what: str, seconds: float = PATIENCE, every: float = 0.05) -> _T:
    """Poll until the condition is true and return what it answered.

    Raises:
        AssertionError: it was not within ``seconds``; the message says what was waited for.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(every)


def server_urls() -> tuple[str, str]:
    """Database and broker for tests that need servers: from the environment, else the usual local ones."""
    database = os.environ.get("DATABASE_URL", DATABASE_URL)
    broker = os.environ.get("BROKER_URL", BROKER_URL)
    return database if database.startswith("postgres") else DATABASE_URL, broker


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


class Process:
    """A child in a process group of its own, with its output in a file."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], directory: Path) -> None:
        self.name = name
        self._argv, self._env = argv, env
        self._path = directory / f"{name}-{uuid.uuid4().hex[:6]}.log"
        self.start()

    def start(self) -> None:
        with self._path.open("ab") as output:
            self.popen = subprocess.Popen(
                self._argv, env=self._env, cwd=ROOT, start_new_session=True, **self.streams(output)
            )

    def streams(self, output: Any) -> dict[str, Any]:
        """Where standard input, output and error go; ``output`` is the open log."""
        return {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}

    @property
    def log(self) -> str:
        return self._path.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def wait_for_line(self, text: str, count: int = 1) -> None:
        def said() -> bool:
            if self.log.count(text) >= count:
                return True
            assert self.alive, f"{self.name} ended ({self.popen.returncode}) before it said {text!r}:\n{self.log}"
            return False

        wait_until(said, f"{self.name} says {text!r}")

    def wait(self, seconds: float = PATIENCE) -> int:
        return self.popen.wait(seconds)

    def _signal(self, number: int, *, group: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.popen.pid, number)
            elif self.alive:
                self.popen.send_signal(number)

    def kill9(self) -> None:
        """The whole group at once, as a power cut or a container's end would."""
        self._signal(signal.SIGKILL, group=True)
        self.popen.wait(PATIENCE)

    def kill9_parent(self) -> None:
        """Only the parent; a prefork pool's children are left to find out."""
        self._signal(signal.SIGKILL, group=False)
        self.popen.wait(PATIENCE)

    def term(self) -> None:
        self._signal(signal.SIGTERM, group=False)

    def quit(self) -> None:
        self._signal(signal.SIGQUIT, group=False)

    def stop(self) -> None:
        """SIGSTOP to the whole group: it lives, and does nothing."""
        self._signal(signal.SIGSTOP, group=True)

    def cont(self) -> None:
        self._signal(signal.SIGCONT, group=True)

    def restart_if_dead(self) -> None:
        """What systemd or Kubernetes would do."""
        if not self.alive:
            self.start()


class Worker(Process):
    """A real ``celery worker``."""

    def wait_until_ready(self) -> Worker:
        self.wait_for_line(" ready.")
        return self

    def kill9_child(self, pid: int | str) -> None:
        """One child of the prefork pool; a test knows its pid from what the body logged outside."""
        assert int(pid) != self.popen.pid
        os.kill(int(pid), signal.SIGKILL)


class Stack:
    """One database, one queue, and the processes that use them."""

    def __init__(self, database_url: str, broker_url: str, **settings: Any) -> None:
        """``settings`` are entries of RELIABLE_JOBS, for this process and the workers."""
        self.server_url, self.broker_url = database_url, broker_url
        self.database_name = f"rj_{os.getpid()}_{uuid.uuid4().hex[:6]}"
        parts = urlsplit(database_url)
        self.database_url = urlunsplit(parts._replace(path=f"/{self.database_name}"))
        #: No sweep unless a test says so: in workers the fallback is off, and beat is not running.
        self.settings: dict[str, Any] = {"GRACE": 0.3, "LEASE": 2.0, "WORKER_SWEEP_INTERVAL": 0.0, **settings}
        self.queue = f"rj_{os.getpid()}_{uuid.uuid4().hex[:6]}"
        self.queues: list[str] = []
        self.processes: list[Process] = []
        self._directory = tempfile.TemporaryDirectory(prefix="rj-stack-")
        self.directory = Path(self._directory.name)
        self._undo: list[Callable[[], Any]] = []

    # --- its life -----------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the database and migrate it. Needs to be active."""
        with psycopg.connect(self.server_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{self.database_name}"')
        call_command("migrate", verbosity=0, interactive=False)

    def destroy(self) -> None:
        self.end_processes(self.processes)
        with contextlib.suppress(Exception), self._channel() as channel:
            for queue in self.queues:
                channel.queue_delete(queue)
        gone = contextlib.suppress(psycopg.OperationalError)  # a private server may be gone already
        with gone, psycopg.connect(self.server_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{self.database_name}" WITH (FORCE)')
        self._directory.cleanup()

    @contextlib.contextmanager
    def migrated(self, django_db_blocker: Any) -> Iterator[Stack]:
        """Its database stands for as long as the block; use it within ``active()``."""
        with django_db_blocker.unblock():
            try:
                with self.active():
                    self.create()
                yield self
            finally:
                self.destroy()

    @contextlib.contextmanager
    def active(self) -> Iterator[Stack]:
        """Django's default database and Celery's broker are the stack's, in every thread of this process."""
        parsed = connections.configure_settings({"default": by_hand(self.database_url)})
        before = connections["default"], copy.copy(connections.settings["default"])
        broker, queue = app.conf.broker_url, app.conf.task_default_queue
        connections.settings["default"] = parsed["default"]
        del connections["default"]
        app.set_default()  # threads see the app too
        jobs = override_settings(RELIABLE_JOBS=self.settings)
        jobs.enable()
        self._use_broker(self.broker_url, self.queue)
        try:
            yield self
        finally:
            jobs.disable()
            connections["default"].close()
            self._use_broker(broker, queue)
            connections.settings["default"] = before[1]
            connections["default"] = before[0]

    @staticmethod
    def _use_broker(url: str, queue: str) -> None:
        publisher(app).close()
        with publisher_module._publishers_lock:
            publisher_module._publishers.clear()
        use_broker(url, queue)

    def clean(self) -> None:
        """Empty every table of a test's making. What a test left running is disconnected, not waited for."""
        tables = ["reliable_jobs_job", "reliable_jobs_jobevent", "testapp_effect", "testapp_parent", "testapp_child"]
        tables.append("django_celery_results_taskresult")
        for attempt in range(3):
            try:
                with psycopg.connect(self.database_url, autocommit=True) as connection:
                    connection.execute(f"SET lock_timeout = '{1 + attempt}s'")
                    connection.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY")
                    return
            except psycopg.errors.LockNotAvailable:
                self.terminate_backends("state <> 'idle'")
        raise AssertionError("the tables could not be emptied")

    def terminate_backends(self, which: str) -> int:
        """End database sessions of this stack but our own; returns how many."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {which}"
            ).fetchone()[0]

    def sessions(self, which: str) -> int:
        """How many database sessions of this stack but our own there are."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(
                "SELECT count(*) FROM pg_stat_activity "
                f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {which}"
            ).fetchone()[0]

    # --- processes ----------------------------------------------------------------------------------------------------

    def environment(self, *, database_url: str | None = None, broker_url: str | None = None, **more: Any) -> dict:
        """For a child. Upper-case names are entries of RELIABLE_JOBS (``LEASE=1``), or whole variables (``TEST_…``)."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TEST_", "COV_"))}
        env.update(
            DJANGO_SETTINGS_MODULE="tests.settings",
            DATABASE_URL=database_url or self.database_url,
            BROKER_URL=broker_url or self.broker_url,
            TEST_QUEUE=self.queue,
            PYTHONUNBUFFERED="1",
            PYTHONWARNINGS="ignore",
        )
        for name, value in {**self.settings, **more}.items():
            env[name if name.startswith("TEST_") else f"TEST_{name}"] = str(value)
        return env

    def worker(
        self,
        *,
        pool: str = "prefork",
        concurrency: int = 1,
        queue: str | None = None,
        options: Iterable[str] = (),
        wait: bool = True,
        **environment: Any,
    ) -> Worker:
        """Start a worker of this stack's queue and wait until it consumes."""
        name = f"w{uuid.uuid4().hex[:8]}"
        argv = [sys.executable, "-m", "celery", "-A", "tests.celery_app", "worker", "-l", "INFO", "-n", f"{name}@test"]
        argv += ["-P", pool, "-c", str(concurrency), "-Q", queue or self.queue]
        argv += ["--without-gossip", "--without-mingle", "--without-heartbeat", *options]
        worker = Worker(name, argv, self.environment(**environment), self.directory)
        self.processes.append(worker)
        return worker.wait_until_ready() if wait else worker

    def script(self, code: str, **environment: Any) -> Process:
        """A process of the project's own: Django is set up, the test app's tasks are ``tasks``, and ``pause(text)``
        prints a line and waits to be killed."""
        prelude = """
            import time
            import django
            from tests.celery_app import app, use_broker
            django.setup()
            from django.db import transaction
            from tests.testapp import tasks
            from tests.testapp.models import Effect
            def pause(text):
                print(text, flush=True)
                time.sleep(600)
        """
        argv = [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)]
        process = Process("script", argv, self.environment(**environment), self.directory)
        self.processes.append(process)
        return process

    def beat(self, **environment: Any) -> Process:
        argv = [sys.executable, "-m", "celery", "-A", "tests.celery_app", "beat", "-l", "INFO", "--pidfile="]
        argv += ["-S", "django_celery_beat.schedulers:DatabaseScheduler"]
        process = Process("beat", argv, self.environment(**environment), self.directory)
        self.processes.append(process)
        return process

    def end_processes(self, processes: Iterable[Process]) -> None:
        for process in list(processes):
            process.cont()
            process.kill9()
            if process in self.processes:
                self.processes.remove(process)

    # --- the broker ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def own_queue(self) -> Iterator[str]:
        """Another queue as the default one for the time of the block: nobody consumes it, nothing has settled in it."""
        before = self.queue
        self.queue = f"rj_{os.getpid()}_{uuid.uuid4().hex[:6]}"
        self._use_broker(self.broker_url, self.queue)
        self.declare()
        try:
            yield self.queue
        finally:
            with contextlib.suppress(Exception), self._channel() as channel:
                channel.queue_delete(self.queue)
            self.queue = before
            self._use_broker(self.broker_url, self.queue)

    @contextlib.contextmanager
    def through(self, broker_url: str) -> Iterator[None]:
        """This process reaches the broker by another address: that of a proxy."""
        self._use_broker(broker_url, self.queue)
        try:
            yield
        finally:
            self._use_broker(self.broker_url, self.queue)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        with Connection(self.broker_url, connect_timeout=5) as connection:
            channel = connection.default_channel
            yield channel

    def declare(self) -> None:
        self.queues.append(self.queue)
        with self._channel() as channel:
            app.amqp.queues[self.queue](channel).declare()

    def depth(self) -> int:
        """Messages that are ready in the queue; 0 where there is no queue."""
        with self._channel() as channel:
            try:
                return int(channel.queue_declare(self.queue, passive=True).message_count)
            except channel.connection.channel_errors:
                return 0

    def purge(self) -> int:
        with self._channel() as channel:
            return int(channel.queue_purge(self.queue))

    def delete_queue(self, name: str | None = None) -> None:
        with self._channel() as channel:
            channel.queue_delete(name or self.queue)

    def take_messages(self) -> list[Any]:
        """Every ready message of the queue, taken off it."""
        with self._channel() as channel:
            queue = Queue(self.queue, channel=channel)
            return list(iter(lambda: queue.get(no_ack=True), None))

    def publish(self, job: Job, *, copies: int = 1, **pointer: Any) -> None:
        """The job's message as it is now, so many times; ``pointer`` changes what it says of itself (rev, send)."""
        message = outgoing(Job.objects.get(pk=job.pk), "default")
        message.headers[HEADER].update(pointer)
        with self._channel() as channel:
            producer = Producer(channel, auto_declare=False)
            for _ in range(copies):
                producer.publish(
                    message.body,
                    exchange="",
                    routing_key=self.queue,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers=message.headers,
                    **message.properties,
                )

    def publish_raw(self, body: bytes, content_type: str, headers: dict[str, Any]) -> None:
        with self._channel() as channel:
            Producer(channel, auto_declare=False).publish(
                body,
                exchange="",
                routing_key=self.queue,
                content_type=content_type,
                content_encoding="utf-8",
                headers=headers,
            )

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def row_only(self, task: Any, *args: Any, **kwargs: Any) -> Job:
        """A job whose message was never published."""
        with override_settings(RELIABLE_JOBS={**self.settings, "DISPATCH": "relay"}):
            return self.job(task.delay(*args, **kwargs))

    @staticmethod
    def job(result: Any) -> Job:
        return Job.objects.get(pk=getattr(result, "id", result))

    @staticmethod
    def sweep() -> sweeper.Report:
        """One sweep in this process. A settlement speaks for its queue for a second only, not for the usual 30: a row
        behind it waits for being overtaken, or for that time. A broker that is away is asked for a second."""
        reachable = Publisher.reachable
        with (
            mock.patch.object(sweeper, "FRONTIER_AGE", 1.0),
            mock.patch.object(
                Publisher, "reachable", lambda self, timeout=1.0, **more: reachable(self, min(timeout, 1.0), **more)
            ),
        ):
            return sweeper.sweep(app)

    def ends(self, result: Any, status: str = "succeeded", *, sweeping: bool = False, seconds: float = PATIENCE) -> Job:
        """Wait until the job is final, check how it ended and return the row."""
        job_id = getattr(result, "id", None) or result.pk

        def final() -> Job | None:
            if sweeping:
                self.sweep()
            job = Job.objects.get(pk=job_id)
            return job if job.is_final else None

        job = wait_until(final, f"job {job_id} is final", seconds, every=0.2 if sweeping else 0.05)
        events = [(event.kind, event.detail) for event in JobEvent.objects.filter(job_id=job_id)]
        assert job.status == status, f"{job} {job.status} ({job.reason}): {job.error}; {events}"
        return job

    def all_end(self, status: str = "succeeded", *, sweeping: bool = False, seconds: float = PATIENCE) -> list[Job]:
        def none_left() -> bool:
            if sweeping:
                self.sweep()
            return not Job.objects.unfinished().exists()

        wait_until(none_left, "no job is unfinished", seconds, every=0.2 if sweeping else 0.05)
        jobs = list(Job.objects.all())
        assert {job.status for job in jobs} == {status}, [(str(job), job.status, job.error) for job in jobs]
        return jobs

    @staticmethod
    def all_end_but(status: str) -> None:
        """Every job but those that ended so on purpose has succeeded."""
        rest = Job.objects.exclude(status=status)
        wait_until(lambda: not rest.exclude(status="succeeded").exists(), f"all jobs but the {status} ones succeed")

    @staticmethod
    def database_now() -> datetime.datetime:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            return cursor.fetchone()[0]

    @staticmethod
    def effects(name: str) -> int:
        return Effect.objects.filter(name=name).count()

    @staticmethod
    def kinds(job: Job) -> list[str]:
        return list(JobEvent.objects.filter(job_id=job.pk).order_by("pk").values_list("kind", flat=True))


class Transaction:
    """A transaction of another session (a thread with connections of its own), held open until told."""

    def __init__(self, work: Callable[[], Any]) -> None:
        from django.db import transaction

        self._go, self._did = threading.Event(), threading.Event()
        self._commit = True
        self.answer: Any = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                with transaction.atomic():
                    self.answer = work()
                    self._did.set()
                    self._go.wait(PATIENCE)
                    if not self._commit:
                        transaction.set_rollback(True)
            except BaseException as error:
                self.error = error
            finally:
                self._did.set()
                connections.close_all()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        if not self._did.wait(10):
            self._go.set()
            raise AssertionError("the other session waits for a lock")
        if self.error is not None:
            raise self.error

    def end(self, *, commit: bool = True) -> None:
        self._commit = commit
        self._go.set()
        self._thread.join(PATIENCE)
        if self.error is not None:
            raise self.error
