"""An exception is raised at each call of the package's own code between a message's arrival and its answer.

The undisturbed delivery names the calls (``sys.settrace``). Each of them gets a job of its own, whose delivery meets an
exception at that call; then the system recovers: what was not acknowledged is delivered again, sweeps publish, time
passes. The consumer's handler, Celery's request and its tracer are the real ones; the pool is the solo one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import pytest
from celery import signals
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from django.db import connection
from django.db.models import F
from kombu.asynchronous.timer import Timer

import reliable_jobs
from reliable_jobs import ReliableTask
from reliable_jobs.compat.celery_backend import AnsweringBackend
from reliable_jobs.models import Job, JobEvent, JobGroup
from reliable_jobs.run import bundle_transaction, delivery, kept_connections, lease
from reliable_jobs.sweep import sweeper
from reliable_jobs.worker import parking, requests, revocation
from tests.celery_app import app
from tests.support.inprocess import HOSTNAME, InProcess

PACKAGE = str(Path(reliable_jobs.__file__).parent)
#: Rounds of sweeps and deliveries after which a job that is not final waits for ever.
ROUNDS = 25


#: Called by Celery itself, or all of its lines guarded: what would be raised before their first line is not the
#: package's.
ENTRIES = (
    parking._outlive.__code__,
    ReliableTask.__call__.__code__,
    delivery.deliver.__code__,
    bundle_transaction.Try.run_function.__code__,
    ReliableTask.backend.fget.__code__,
    AnsweringBackend.store_result.__code__,
    AnsweringBackend.mark_as_done.__code__,
    AnsweringBackend.mark_as_failure.__code__,
    AnsweringBackend.mark_as_retry.__code__,
    AnsweringBackend.mark_as_revoked.__code__,
    AnsweringBackend._has_taken.__code__,
)


class Injected(RuntimeError):
    """What a bug would raise."""


class Calls:
    """Notes the package's calls of this thread, and raises at one of them.

    Args:
        raise_at: its number, from 1; 0 for none.
    """

    error: type[Exception] = Injected

    def __init__(self, raise_at: int = 0) -> None:
        self.raise_at = raise_at
        self.names: list[str] = []

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if (
            event == "call"
            and code.co_filename.startswith(PACKAGE)
            and not code.co_name.endswith(("comp>", "genexpr>"))
        ):
            module = code.co_filename[len(PACKAGE) + 1 : -3]
            if code.co_name == "on_task_received" or code in ENTRIES:
                return
            self.names.append(f"{module}.{getattr(code, 'co_qualname', code.co_name)}")
            if len(self.names) == self.raise_at:
                raise self.error(f"at call {self.raise_at}, {self.names[-1]}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


@dataclasses.dataclass
class Told:
    """What the hooks and signals of a job's runs were told, over its whole life."""

    failed: int = 0
    succeeded: int = 0


class Worker:
    """A consumer's handler with the solo pool, without a broker connection: messages are handed to it."""

    def __init__(self, jobs: InProcess) -> None:
        self.jobs = jobs
        self.told: dict[str, Told] = {}
        consumer: Any = Consumer.__new__(Consumer)
        vars(consumer).update(
            app=app,
            hostname=HOSTNAME,
            strategies={},
            pool=jobs._pool,
            timer=Timer(),
            hub=None,
            controller=mock.Mock(state=worker_state),
            event_dispatcher=None,
            connection_errors=(ConnectionError,),
            channel_errors=(),
            on_task_message=set(),
            on_task_request=lambda request: request.execute_using_pool(jobs._pool),
            disable_rate_limits=True,
            task_buckets=dict.fromkeys(app.tasks),
            restart_count=0,
            _maximum_prefetch_restored=True,
            _pending_operations=[],
            call_soon=lambda promise, *args, **kwargs: promise(*args, **kwargs),
        )
        consumer.call_soon_ack = consumer.call_soon
        parking.ParkingStep(consumer)
        for name, task in app.tasks.items():
            consumer.strategies[name] = task.start_strategy(app, consumer)
        self.handle = consumer.create_task_handler()

    def deliver(self, message: Any) -> str:
        """Hand a message over; the answer: "acked", "rejected", "requeued", or "" while it is held."""
        answers: list[str] = []

        def ack(*args: Any, **kwargs: Any) -> None:
            answers.append("acked")
            message._state = "ACK"

        def reject(*args: Any, requeue: bool = False, **kwargs: Any) -> None:
            again = requeue or (len(args) > 2 and bool(args[2]))
            answers.append("requeued" if again else "rejected")
            message._state = "REQUEUED" if again else "REJECTED"

        message._state = "RECEIVED"
        message.ack = message.ack_log_error = ack
        message.reject = message.reject_log_error = reject
        self.handle(message)
        assert len(answers) < 2, answers
        return answers[0] if answers else ""

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        def failed(sender: Any, task_id: str, **kwargs: Any) -> None:
            self.told.setdefault(task_id, Told()).failed += 1

        def succeeded(sender: Any, **kwargs: Any) -> None:
            self.told.setdefault(sender.request.id, Told()).succeeded += 1

        signals.task_failure.connect(failed)
        signals.task_success.connect(succeeded)
        try:
            yield
        finally:
            signals.task_failure.disconnect(failed)
            signals.task_success.disconnect(succeeded)

    def recover(self, held: list[Any]) -> None:
        """Deliver again what was not answered, sweep, and let time pass until nothing is unfinished."""
        for _ in range(ROUNDS):
            again, held = held, []
            for message in [*again, *self.jobs.take()]:
                message.delivery_info["redelivered"] = message in again
                if self.deliver(message) not in ("acked", "rejected"):
                    held.append(message)
            is_open = Job.objects.unfinished().exists() or JobGroup.objects.filter(state="open").exists()
            if not held and not is_open:
                return
            hour = datetime.timedelta(hours=1)
            Job.objects.unfinished().update(
                **{name: F(name) - hour for name in ("due_at", "check_at", "lease_at", "deadline_at")}
            )
            Job.objects.filter(status="sent", check_at__isnull=False).update(check_at=F("check_at") - hour)
            sweeper.sweep(app)
        left = [(str(job), job.status, job.error) for job in Job.objects.unfinished()]
        groups = list(JobGroup.objects.filter(state="open"))
        raise AssertionError(f"waits for ever: {left}, {groups}, {len(held)} messages held")


@contextlib.contextmanager
def inline_aside() -> Iterator[None]:
    """What the parent process does in a thread is done in this one, so that its calls are seen. Errors are logged."""

    def aside(work: Callable[[], None], what: str) -> threading.Thread:
        with contextlib.suppress(Exception):
            work()
        ended = threading.Thread(target=lambda: None)
        ended.start()
        return ended

    with contextlib.ExitStack() as stack:
        for module in (parking, requests, revocation):
            stack.enter_context(mock.patch.object(module, "aside", aside))
        yield


def history(job_id: Any) -> str:
    events = JobEvent.objects.filter(job_id=job_id).order_by("pk")
    return "\n".join(f"{event.kind}: {event.detail}\n{event.traceback}" for event in events)


@pytest.fixture
def worker(jobs: InProcess, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Worker]:
    """A worker whose deliveries an exception may meet. A module takes it by assignment, beside ``jobs``."""
    monkeypatch.setattr(kept_connections, "active", True)
    settings.RELIABLE_JOBS = {"WORKER_CONN_MAX_AGE": 600.0, "LEASE": 0.5, "HOLD": 0.2}
    monkeypatch.setattr("reliable_jobs.run.tracing.PAUSE", 0.0)
    monkeypatch.setattr("reliable_jobs.run.delivery.REDELIVERY_PATIENCE", 0.2)
    if connection.vendor == "sqlite":
        # In memory a statement that meets another thread's is refused at once, whatever the timeout.
        monkeypatch.setattr(lease, "heartbeat", lambda run, stop: None)
    with inline_aside():
        made = Worker(jobs)
        with made.listening():
            yield made
    gc.collect()  # an error that is still referred to keeps its cursor open, which keeps SQLite's tables locked
