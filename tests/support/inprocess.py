"""A worker without a process: messages are taken off the queue and run by Celery's own request and tracer, here.

The broker is kombu's memory transport with a queue of the test's own, so that a test can look at each message before
it runs, run it twice, or lose it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from celery import signals
from celery.concurrency.solo import TaskPool
from celery.worker.request import Request, create_request_cls
from django.apps import apps
from django.conf import settings as django_settings
from django.db import connections
from django.test import override_settings
from django.utils import timezone
from kombu import Connection, Producer, Queue
from kombu.utils.imports import symbol_by_name

from reliable_jobs.message.row_to_message import HEADER, outgoing
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.sweep import sweeper
from tests.celery_app import app, use_broker
from tests.support.harness import PATIENCE
from tests.support.harness.queues import close_publishers
from tests.testapp.models import Effect

HOSTNAME = "inprocess@test"


@contextlib.contextmanager
def broker(url: str, queue: str) -> Iterator[str]:
    """Celery and the outbox use another broker and default queue for a time."""
    before = app.conf.broker_url, app.conf.task_default_queue
    _use(url, queue)
    try:
        yield queue
    finally:
        _use(*before)


@contextlib.contextmanager
def memory_broker() -> Iterator[str]:
    """The memory transport, and a queue of the test's own; gives the queue's name."""
    with broker("memory://", f"inprocess_{uuid.uuid4().hex[:8]}") as queue:
        yield queue


def _use(url: str, queue: str) -> None:
    close_publishers()
    use_broker(url, queue)


@dataclasses.dataclass
class Delivered:
    """What became of one delivery."""

    message: Any
    #: "acked", "rejected" or "requeued"; "" when the worker did neither.
    answer: str
    #: Names of the signals that Celery sent, in order.
    signals: list[str]

    @property
    def id(self) -> str:
        return self.message.headers["id"]


class InProcess:
    """Queue, worker and sweeper of one test."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self._pool = TaskPool(limit=1, app=app)

    # --- messages -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        with Connection(app.conf.broker_url, connect_timeout=5) as connection:
            yield connection.default_channel

    def take(self, queue: str | None = None) -> list[Any]:
        """Every message that is in the queue, taken off it."""
        with self._channel() as channel:
            entity = Queue(queue or self.queue, channel=channel)
            entity.declare()
            return list(iter(lambda: entity.get(no_ack=True), None))

    def message(self, job: Any, *, redelivered: bool = False, **pointer: Any) -> Any:
        """The job's message as the sweeper would send it now; ``pointer`` changes what it says of itself."""
        row = self.row(job)
        going = outgoing(row, "default")
        going.headers[HEADER]["send"] = max(1, row.sends)
        going.headers[HEADER].update(pointer)
        return self.through_broker(
            going.body, going.content_type, going.content_encoding, going.headers, going.properties, redelivered
        )

    def foreign(self, task: str, args: Any = (), kwargs: Any = None, **headers: Any) -> Any:
        """A message as plain Celery, or another language, would send it; a header set to None is left out."""
        import json

        merged = {"lang": "py", "task": task, "id": str(uuid.uuid4()), **headers}
        body = json.dumps([list(args), kwargs or {}, {"callbacks": None, "errbacks": None, "chain": None}]).encode()
        return self.through_broker(
            body, "application/json", "utf-8", {key: value for key, value in merged.items() if value is not None}, {}
        )

    def through_broker(
        self,
        body: bytes,
        content_type: str,
        content_encoding: str,
        headers: dict[str, Any],
        properties: dict[str, Any],
        redelivered: bool = False,
    ) -> Any:
        """Publish to a queue of its own and take it from there, so that it looks as every message of this broker."""
        name = f"once_{uuid.uuid4().hex[:8]}"
        with self._channel() as channel:
            Queue(name, channel=channel).declare()
            Producer(channel, auto_declare=False).publish(
                body,
                exchange="",
                routing_key=name,
                content_type=content_type,
                content_encoding=content_encoding,
                headers=headers,
                **properties,
            )
            message = Queue(name, channel=channel).get(no_ack=True)
        message.delivery_info["redelivered"] = redelivered
        return message

    # --- a worker -----------------------------------------------------------------------------------------------------

    def deliver(self, message: Any, *, redelivered: bool | None = None) -> Delivered:
        """Run one message as a worker with the solo pool does: Request, pool, trace_task_ret, ack or reject."""
        if redelivered is not None:
            message.delivery_info["redelivered"] = redelivered
        task = app.tasks[message.headers["task"]]
        delivered = Delivered(message, "", [])

        def ack(*args: Any) -> None:
            delivered.answer = "acked"

        def reject(logger: Any, errors: Any, requeue: bool = False) -> None:
            delivered.answer = "requeued" if requeue else "rejected"

        kind = create_request_cls(symbol_by_name(task.Request) or Request, task, self._pool, HOSTNAME, None, app=app)
        request = kind(message, on_ack=ack, on_reject=reject, app=app, hostname=HOSTNAME, task=task)
        with listening(delivered.signals):
            request.execute_using_pool(self._pool)
        return delivered

    def work(self) -> list[Delivered]:
        """Run every message of the queue, and those that come meanwhile."""
        done: list[Delivered] = []
        while messages := self.take():
            done += [self.deliver(message) for message in messages]
        return done

    def finish(self, rounds: int = 20) -> list[Delivered]:
        """Sweep and work until nothing is unfinished; what waits for a later time is made due."""
        done: list[Delivered] = []
        for _ in range(rounds):
            done += self.work()
            if not Job.objects.unfinished().exists():
                return done
            Job.objects.unfinished().filter(sends=0, due_at__isnull=False).update(
                due_at=timezone.now() - datetime.timedelta(seconds=1)
            )
            sweeper.sweep(app)
        raise AssertionError(f"unfinished: {[(str(job), job.status, job.error) for job in Job.objects.unfinished()]}")

    @staticmethod
    def sweep() -> sweeper.Report:
        return sweeper.sweep(app)

    # --- rows ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def row(result: Any) -> Job:
        return Job.objects.get(pk=getattr(result, "pk", None) or getattr(result, "id", result))

    @staticmethod
    def kinds(result: Any) -> list[str]:
        events = JobEvent.objects.filter(job_id=getattr(result, "pk", None) or getattr(result, "id", result))
        return list(events.order_by("pk").values_list("kind", flat=True))

    @staticmethod
    def effects(name: str) -> int:
        return Effect.objects.filter(name=name).count()

    def run(self, task: Any, *args: Any, **kwargs: Any) -> Job:
        """Enqueue, deliver once, and return the row as it is then."""
        result = task.delay(*args, **kwargs)
        self.last = [self.deliver(message) for message in self.take()]
        return self.row(result)


_SIGNALS = ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry", "task_internal_error")
_listeners: list[list[str]] = []


@contextlib.contextmanager
def listening(heard: list[str]) -> Iterator[None]:
    """Note every run signal that Celery sends meanwhile."""
    _listeners.append(heard)
    try:
        yield
    finally:
        _listeners[:] = [one for one in _listeners if one is not heard]


def _connect_for_good() -> None:
    """Before any tracer is built: it keeps the list of receivers that the signal has then. Up to Celery 5.6 a signal
    gets a new one when a receiver has died."""
    for name in _SIGNALS:

        def receive(_name: str = name, **kwargs: Any) -> None:
            for heard in _listeners:
                heard.append(_name)

        getattr(signals, name).connect(receive, weak=False)


_connect_for_good()


# --- fixtures: a module takes them by assignment, ``jobs = inprocess.jobs`` -------------------------------------------


@pytest.fixture
def jobs(transactional_db: None) -> Iterator[InProcess]:
    """Queue, worker and sweeper, with transactions that really commit."""
    with memory_broker() as queue, without_haste():
        yield InProcess(queue)


@pytest.fixture
def rows(db: None) -> Iterator[InProcess]:
    """The same inside a test's transaction, for what needs no commit; on_commit hooks do not fire."""
    with memory_broker() as queue, without_haste():
        yield InProcess(queue)


def without_haste() -> override_settings:
    """A commit publishes however long it takes: a busy machine stands still for longer than a request may."""
    return override_settings(RELIABLE_JOBS={**django_settings.RELIABLE_JOBS, "PUBLISH_TIMEOUT": PATIENCE})


@contextlib.contextmanager
def extra_database(alias: str, path: Path, **options: Any) -> Iterator[str]:
    """Another database for a time, an SQLite file, open in this thread. Needs ``db`` or ``transactional_db``."""
    with extra_alias(alias, ENGINE="django.db.backends.sqlite3", NAME=str(path), OPTIONS=options):
        yield alias


@contextlib.contextmanager
def extra_alias(alias: str, **settings: Any) -> Iterator[str]:
    """Another entry of DATABASES for a time, open in this thread."""
    configured = connections.configure_settings({"default": {}, alias: settings})[alias]
    connections.settings[alias] = configured
    connection = connections[alias]
    # Django's test case lets tests connect to an alias that it was told of, or to one that is in no settings.
    del connections.settings[alias]
    connection.connect()
    connections.settings[alias] = configured
    try:
        # django-celery-results reads the settings themselves.
        with mock.patch.dict(django_settings.DATABASES, {alias: configured}):
            yield alias
    finally:
        connection.close()
        del connections[alias]
        connections.settings.pop(alias, None)


@pytest.fixture
def second_database(transactional_db: None, tmp_path: Path) -> Iterator[str]:
    """A second database with the job tables."""
    with extra_database("second", tmp_path / "second.sqlite3") as alias:
        with connections[alias].schema_editor() as editor:
            for model in (*apps.get_app_config("reliable_jobs").get_models(), Effect):
                editor.create_model(model)
        yield alias
