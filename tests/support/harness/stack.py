"""One database, one queue, and the processes that use them."""

from __future__ import annotations

import contextlib
import copy
import datetime
import os
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit, urlunsplit

import psycopg
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from reliable_jobs.dispatch.publisher import Publisher
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.sweep import lost_messages, sweeper
from tests.celery_app import app
from tests.support.databases import by_hand
from tests.support.emptying import LARGE
from tests.support.harness.process import Process, Worker
from tests.support.harness.queues import Queues
from tests.support.harness.waiting import PATIENCE, wait_until
from tests.testapp.models import Effect


class Stack(Queues):
    """One database, one queue, and the processes that use them."""

    def __init__(self, database_url: str, broker_url: str, **settings: Any) -> None:
        """``settings`` are entries of RELIABLE_JOBS, for this process and the workers."""
        self.server_url, self.broker_url = database_url, broker_url
        self.database_name = f"rj_{os.getpid()}_{uuid.uuid4().hex[:6]}"
        parts = urlsplit(database_url)
        self.database_url = urlunsplit(parts._replace(path=f"/{self.database_name}"))
        #: No sweep unless a test says so: in workers the fallback is off, and beat is not running. A confirm may take
        #: long on a loaded machine, and what is not confirmed in time is sent once more.
        standing = {"GRACE": 0.3, "LEASE": 2.0, "WORKER_SWEEP_INTERVAL": 0.0, "PUBLISH_TIMEOUT": 10.0}
        self.settings: dict[str, Any] = {**standing, **settings}
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
        try:
            # Not for longer: in the tests that come meanwhile, what is not marked as one of a database's must fail.
            with django_db_blocker.unblock(), self.active():
                self.create()
            yield self
        finally:
            with django_db_blocker.unblock():
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

    def clean(self) -> None:
        """Empty every table of a test's making. What a test left running is disconnected, not waited for."""
        tables = ["reliable_jobs_job", "reliable_jobs_jobevent", "testapp_effect", "testapp_parent", "testapp_child"]
        tables += ["reliable_jobs_jobgroup", "reliable_jobs_jobstate", "reliable_jobs_savedgroup"]
        tables += ["reliable_jobs_cancelledworkflow", "reliable_jobs_process", "reliable_jobs_processseen"]
        tables += ["reliable_jobs_stat", "reliable_jobs_statstate", "reliable_jobs_queuestat"]
        tables += ["reliable_jobs_bulkact", "reliable_jobs_pause", "django_celery_results_taskresult"]
        for attempt in range(3):
            try:
                with psycopg.connect(self.database_url) as connection:
                    connection.execute(f"SET lock_timeout = '{1 + attempt}s'")
                    # Waits for whoever uses one of them, as TRUNCATE does, which makes new files for each.
                    connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
                    sizes = (f"SELECT '{table}', pg_relation_size('{table}')" for table in tables)
                    for table, size in connection.execute(" UNION ALL ".join(sizes)).fetchall():
                        if size:
                            connection.execute(f"{'TRUNCATE' if size > LARGE else 'DELETE FROM'} {table}")
                    return
            except psycopg.errors.DeadlockDetected:  # with a sweep, which goes on
                continue
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

    def pids(self, which: str) -> list[int]:
        """The server's processes of such database sessions of this stack, our own one left out."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity "
                f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {which}"
            )
            return [pid for (pid,) in rows]

    def sessions(self, which: str) -> int:
        """How many such database sessions of this stack but our own there are."""
        return len(self.pids(which))

    def state(self) -> str:
        """The unfinished jobs with their events, the sessions with what they hold or wait for, and which running rows a
        sweeper could lock.
        """
        questions = (
            "SELECT id, status, reason, sends, crashes, interruptions, epoch, due_at - now(), check_at - now(), "
            "lease_at - now(), worker, (SELECT array_agg(kind || ' ' || at || ' ' || detail ORDER BY event.id) "
            "FROM reliable_jobs_jobevent event WHERE job_id = job.id) "
            "FROM reliable_jobs_job job WHERE finished_at IS NULL LIMIT 20",
            "SELECT pid, state, now() - xact_start, wait_event, pg_blocking_pids(pid), left(query, 200) "
            "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
            "SELECT 'running', id, lease_at <= statement_timestamp() AS over, xmin, xmax FROM reliable_jobs_job "
            "WHERE status = 'running'",
            "SELECT 'not locked', id FROM reliable_jobs_job WHERE status = 'running' FOR NO KEY UPDATE SKIP LOCKED",
            "SELECT 'up since', pg_postmaster_start_time(), clock_timestamp()",
        )
        try:
            with psycopg.connect(self.database_url, autocommit=True, connect_timeout=5) as connection:
                return "\n".join(
                    " | ".join(map(str, row)) for question in questions for row in connection.execute(question)
                )
        except psycopg.Error as error:  # a private server that the test has stopped
            return repr(error)

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
            mock.patch.object(lost_messages, "FRONTIER_AGE", 1.0),
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
