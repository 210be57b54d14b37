"""reliable_jobs as README.md sets it up, with the defaults of every setting that a class here does not name."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from celery import shared_task

from benchmarks.rivals import NotRun, Rival, in_chunks
from benchmarks.rivals.celery import KeptCeleryPriorities, worker

if TYPE_CHECKING:
    from celery import Celery


#: Jobs of :class:`Mixed` that take long.
LONG = 10


class OnCommit(Rival):
    """``DISPATCH = "on_commit"`` (the default) and an atomic body (the default)."""

    distributions: ClassVar[tuple[str, ...]] = (
        "celery",
        "kombu",
        "amqp",
        "django-celery-beat",
        "django-celery-results",
    )
    apps: ClassVar[tuple[str, ...]] = ("django_celery_beat", "django_celery_results", "reliable_jobs")
    settings: ClassVar[dict[str, Any]] = {
        "CELERY_BEAT_SCHEDULER": "django_celery_beat.schedulers:DatabaseScheduler",
        "CELERY_BROKER_CHANNEL_ERROR_RETRY": True,
    }
    stored = "SELECT count(*) FROM reliable_jobs_job"
    unfinished = f"{stored} WHERE status IN ('waiting', 'running')"
    messages = True
    task_options: ClassVar[dict[str, Any]] = {}

    def decorate(self, body: Callable[[int], None]) -> Any:
        from reliable_jobs import ReliableTask

        return shared_task(base=ReliableTask, **self.task_options)(body)

    def enqueue(self, number: int) -> None:
        from benchmarks.project.tasks import effect

        effect.delay(number)

    def fill(self, numbers: range) -> None:
        from django.db import transaction

        from benchmarks.project.tasks import effect
        from reliable_jobs.conf import settings
        from reliable_jobs.sweep import statistics

        if settings.DELIVERY_BATCH > 1:
            # As a site's sweeper has after its first minutes: how long the runs of the warm-up have taken says how many
            # jobs share a message. The first round has nothing to count from.
            for _ in range(2):
                statistics.roll("default", at_once=True)
        for chunk in in_chunks(numbers):
            with transaction.atomic():
                if hasattr(effect, "bulk_delay"):
                    effect.bulk_delay([(number,) for number in chunk])
                else:
                    for number in chunk:
                        effect.delay(number)

    def enqueue_many(self, numbers: range, priority: int) -> None:
        from django.db import transaction

        from benchmarks.project.tasks import effect

        with transaction.atomic():
            effect.bulk_delay([(number,) for number in numbers], priority=priority)

    def bulk(self, count: int) -> None:
        from django.db import transaction

        from benchmarks.project.tasks import effect

        if not hasattr(effect, "bulk_delay"):
            raise NotRun("this version has no bulk_delay")
        with transaction.atomic():
            effect.bulk_delay([(number,) for number in range(count)])

    def prune(self) -> None:
        from reliable_jobs.sweep import pruner

        pruner.prune()

    def workers(self) -> list[list[str]]:
        return [worker(self.processes)]


class Prepared(OnCommit):
    """Statements that the server plans once, by psycopg's means."""

    database_options: ClassVar[dict[str, Any]] = {"server_side_binding": True, "prepare_threshold": 5}


class Priorities(OnCommit):
    """A queue that knows priorities."""

    settings: ClassVar[dict[str, Any]] = {**OnCommit.settings, **KeptCeleryPriorities.settings}
    queue_arguments = KeptCeleryPriorities.queue_arguments


class Relay(OnCommit):
    """``DISPATCH = "relay"``: the request writes the row only, a process of its own publishes."""

    settings: ClassVar[dict[str, Any]] = {**OnCommit.settings, "RELIABLE_JOBS": {"DISPATCH": "relay"}}
    messages = False

    def relays(self) -> list[list[str]]:
        if importlib.util.find_spec("reliable_jobs.management.commands.reliable_jobs_relay") is None:
            raise NotRun("this version has no reliable_jobs_relay")
        # What a project's __init__.py does: import the Celery app before the command looks for it.
        code = "import benchmarks.project.celery; from django.core.management import execute_from_command_line as run; "
        return [[sys.executable, "-c", f"{code}run(['manage.py', 'reliable_jobs_relay'])"]]


class Bundled(OnCommit):
    """An atomic body, up to 100 jobs to a transaction."""

    task_options: ClassVar[dict[str, Any]] = {"bundle": 100}

    def decorate(self, body: Callable[[int], None]) -> Any:
        from reliable_jobs import ReliableTask

        if not hasattr(ReliableTask, "bundle"):
            raise NotRun("this version has no bundles")
        return super().decorate(body)


class Alone(OnCommit):
    """``DELIVERY_BATCH = 1``: a message for each job."""

    settings: ClassVar[dict[str, Any]] = {**OnCommit.settings, "RELIABLE_JOBS": {"DELIVERY_BATCH": 1}}


class Mixed(OnCommit):
    """The jobs 0 to LONG - 1 take 5 s, all others 5 ms."""

    def decorate(self, body: Callable[[int], None]) -> Any:
        @functools.wraps(body)
        def mixed(number: int) -> None:
            body(number)
            time.sleep(5.0 if number in range(LONG) else 0.005)

        return super().decorate(mixed)


class MixedAlone(Mixed):
    """A message for each of them."""

    settings = Alone.settings


class ServersAutovacuum(Bundled):
    """Without the autovacuum settings that the migration gives the table."""

    def install(self) -> None:
        from django.db import connection

        migration = importlib.import_module("reliable_jobs.migrations.0001_initial")
        with connection.schema_editor() as editor:
            migration.reset_autovacuum(None, editor)


class Unwatched(OnCommit):
    """Nothing that watches: no presence, and no sweep loop beside the worker, which also counts the statistics. Each
    job travels alone, with and without them."""

    settings: ClassVar[dict[str, Any]] = {
        **OnCommit.settings,
        "RELIABLE_JOBS": {**Alone.settings["RELIABLE_JOBS"], "PRESENCE_INTERVAL": 0, "WORKER_SWEEP_INTERVAL": 0},
    }


class Measured(OnCommit):
    """As :class:`Alone`, and each worker's port for Prometheus."""

    distributions: ClassVar[tuple[str, ...]] = (*OnCommit.distributions, "prometheus-client")
    settings: ClassVar[dict[str, Any]] = {
        **OnCommit.settings,
        "RELIABLE_JOBS": {
            **Alone.settings["RELIABLE_JOBS"],
            "METRICS_LISTEN": os.environ.get("BENCHMARK_METRICS", ""),
        },
    }

    @functools.cached_property
    def listen(self) -> str:
        """Address and port. Free now, and outside of the range from which the system gives ports away."""
        for number in range(20_000, 30_000):
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", number)):
                return f"127.0.0.1:{number}"
        raise NotRun("no port is free")

    def environment(self, database_url: str) -> dict[str, str]:
        return {"BENCHMARK_METRICS": self.listen}


class Hastened(Measured):
    """As :class:`Measured`, with everything that happens now and then ten times as often, so that a run of seconds has
    its share of it, and more: presence and sweeps each second, the statistics counted every six."""

    settings: ClassVar[dict[str, Any]] = {
        **OnCommit.settings,
        "RELIABLE_JOBS": {
            **Measured.settings["RELIABLE_JOBS"],
            "PRESENCE_INTERVAL": 1,
            "WORKER_SWEEP_INTERVAL": 1,
        },
    }

    def app(self) -> Celery:
        from celery.signals import worker_init

        @worker_init.connect(weak=False)
        def hasten(**kwargs: Any) -> None:
            from reliable_jobs.sweep import statistics

            statistics.EVERY = 6.0

        return super().app()


class UnwatchedBundled(Unwatched, Bundled):
    """As :class:`Unwatched`, in bundles."""


class MeasuredBundled(Measured, Bundled):
    """As :class:`Measured`, in bundles."""


class HastenedBundled(Hastened, Bundled):
    """As :class:`Hastened`, in bundles."""


class NonAtomic(OnCommit):
    """``atomic = False``: claimed and settled in transactions of their own, the body in autocommit."""

    task_options: ClassVar[dict[str, Any]] = {"atomic": False, "time_limit": 60}


class PrunedAtOnce(OnCommit):
    """Keeps no job that has succeeded, so that the pruner has the same to do as the rivals'."""

    settings: ClassVar[dict[str, Any]] = {**OnCommit.settings, "RELIABLE_JOBS": {"RETENTION": {"succeeded": 0}}}


class KeepsResults(OnCommit):
    """Results kept, and written to django-celery-results as well."""

    settings: ClassVar[dict[str, Any]] = {
        **OnCommit.settings,
        "CELERY_TASK_IGNORE_RESULT": False,
        "CELERY_RESULT_BACKEND": "django-db",
    }


class Ledger(OnCommit):
    """Results kept, in the jobs' rows."""

    settings: ClassVar[dict[str, Any]] = {
        **OnCommit.settings,
        "CELERY_TASK_IGNORE_RESULT": False,
        "CELERY_RESULT_BACKEND": "reliable_jobs.results:LedgerBackend",
    }
