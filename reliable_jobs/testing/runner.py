"""Running what was enqueued, the way of a worker."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import uuid
from collections.abc import Iterator
from typing import Any

from celery import Celery
from celery.app import app_or_default
from celery.exceptions import NotRegistered
from django.db import router
from django.db.models import F
from kombu.message import Message

from reliable_jobs.clock import Now
from reliable_jobs.compat.celery_backend import is_disabled, wrapped_by
from reliable_jobs.compat.celery_results import without_backend
from reliable_jobs.compat.celery_run import tracer_of
from reliable_jobs.compat.django import made_connections
from reliable_jobs.compat.django_transaction import hooks_count, in_transaction, take_hooks
from reliable_jobs.message.row_to_message import outgoing
from reliable_jobs.models import Job
from reliable_jobs.run.tracing import that_answers
from reliable_jobs.status import Status
from reliable_jobs.task.reliable_task import ReliableTask
from reliable_jobs.testing.dispatch import in_order, override_dispatch

logger = logging.getLogger(__name__)

#: What a worker would be called in the rows.
WORKER = "reliable_jobs.testing"
_TIMES = ("due_at", "check_at", "expires_at", "started_at", "lease_at", "deadline_at", "created_at")
#: Result backends of these packages live in the test's own database or process.
_LOCAL_BACKENDS = ("django_celery_results.", "celery.backends.filesystem")


@dataclasses.dataclass(frozen=True)
class JobRun:
    """One run of one job."""

    job_id: uuid.UUID
    task: str
    #: What Celery made of it: SUCCESS, FAILURE, RETRY, IGNORED, REJECTED.
    state: str
    #: The row's status afterwards: "waiting" when it is to run again.
    status: str
    value: Any = None
    #: The task function's exception, or Celery's Retry, Ignore or Reject.
    error: BaseException | None = None


@dataclasses.dataclass
class RunReport:
    """The runs, in their order. A job that was retried stands here once for each run."""

    runs: list[JobRun] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def succeeded(self) -> list[JobRun]:
        return [run for run in self.runs if run.status == Status.SUCCEEDED]

    @property
    def failed(self) -> list[JobRun]:
        """Runs that ended their job without success: failed or expired."""
        return [run for run in self.runs if run.status in (Status.FAILED, Status.EXPIRED, Status.CANCELLED)]

    @property
    def again(self) -> list[JobRun]:
        """Runs after which the job waits to run again: retried, snoozed, replaced."""
        return [run for run in self.runs if run.status == Status.WAITING]


def run_jobs(
    *,
    until_empty: bool = True,
    advance: float | datetime.timedelta = 0.0,
    raise_errors: bool = False,
    limit: int = 1000,
    using: str | None = None,
) -> RunReport:
    """Run what is enqueued and due, here and now, in the order of its due times.

    Every job goes the way of a worker: Celery's tracer around it, claim, function and settlement in one transaction (a
    savepoint inside Django's ``TestCase``), retries in the row, results, signals, ``on_failure`` and the like.
    ``transaction.on_commit`` hooks of a function run after its job, also where the test's own transaction never
    commits. Time limits are not enforced, and a function that kills its process kills the tests.

    Args:
        until_empty: also run what the jobs enqueue, and retries that are due. False runs each job that is due now once.
        advance: seconds (or a timedelta) that pass meanwhile, so that delayed jobs and retries come due one after the
            other. The unfinished rows' times are moved back as time passes.
        raise_errors: raise the exception of the first job that ends failed; one that is to be retried does not count.
        limit: most runs, against jobs that enqueue each other for ever.
        using: the database alias; by default the one that jobs are written to.

    Raises:
        celery.exceptions.NotRegistered: a job's task is not known here; a worker would hand it back, then park it.
        RuntimeError: more than ``limit`` runs.
        Exception: with ``raise_errors``, the task function's own.

    Returns:
        The runs, in their order.

    Example::

        send_receipt.apply_async((order.pk,), countdown=3600)
        report = run_jobs(advance=3600, raise_errors=True)
        assert not report.failed
    """
    alias = using or router.db_for_write(Job)
    left = advance if isinstance(advance, datetime.timedelta) else datetime.timedelta(seconds=advance)
    only = None if until_empty else set(_waiting(alias, left).values_list("pk", flat=True))
    report = RunReport()
    #: Rows that a delivery left as they were (held by somebody else): not delivered over and over.
    stuck: set[uuid.UUID] = set()
    with as_worker():
        while True:
            rows = _waiting(alias, left).exclude(pk__in=stuck)
            job = in_order(rows if only is None else rows.filter(pk__in=only), "due_at").first()
            if job is None:
                return report
            if len(report) >= limit:
                raise RuntimeError(
                    f"run_jobs() stopped after {limit} runs; the next one is {job}. "
                    "Do jobs enqueue each other for ever?"
                )
            left -= _pass_time_until(job, alias)
            run = _run(job, alias)
            report.runs.append(run)
            if only is not None:
                only.discard(job.pk)
            elif not Job.objects.using(alias).filter(pk=job.pk, epoch__gt=job.epoch).exists():
                stuck.add(job.pk)
            if raise_errors and run.error is not None and run in report.failed:
                raise run.error


def as_worker() -> Any:
    """The settings of a run in a test."""
    # The lease of a function in a TestCase can't be extended (its row is not committed), and a lost database ends it.
    return override_dispatch(LEASE=86400.0, HOLD=0.001)


def _waiting(alias: str, within: datetime.timedelta) -> Any:
    rows = Job.objects.using(alias).annotate(now=Now())
    return rows.filter(status=Status.WAITING, due_at__lte=Now() + within if within else Now())


def _pass_time_until(job: Any, alias: str) -> datetime.timedelta:
    gap: datetime.timedelta = job.due_at - job.now
    if gap <= datetime.timedelta(0):
        return datetime.timedelta(0)
    gap += datetime.timedelta(milliseconds=1)  # the clock of SQLite and of some MySQL columns is that coarse
    Job.objects.using(alias).unfinished().update(**{name: F(name) - gap for name in _TIMES})
    return gap


def _run(job: Job, alias: str) -> JobRun:
    value, info = deliver(job, alias)
    status = Job.objects.using(alias).values_list("status", flat=True).get(pk=job.pk)
    if info is None:
        return JobRun(job.pk, job.task, "SUCCESS", status, value=value)
    return JobRun(job.pk, job.task, info.state, status, error=info.retval)


def deliver(job: Job, alias: str, *, redelivered: bool = False) -> tuple[Any, Any]:
    """Celery's tracer runs the job's message; its return value, and what it says of an end that is no success.

    Raises:
        celery.exceptions.NotRegistered: the task is not known here.
    """
    app: Celery = app_or_default()
    task = app.tasks.get(job.task)
    if task is None:
        raise NotRegistered(
            f"{job.task!r}: no such task here. Import the module that defines it, or is it named differently now?"
        )
    job.sends = max(job.sends, 1)  # as the sweeper would have raised it
    sent = outgoing(job, alias)
    message = Message(
        body=sent.body,
        content_type=sent.content_type,
        content_encoding=sent.content_encoding,
        headers=sent.headers,
        properties=sent.properties,
        accept=[sent.content_type],
    )
    args, kwargs, embed = message.payload
    request = {
        **sent.headers,
        **(embed or {}),
        "args": args,
        "kwargs": kwargs,
        "hostname": WORKER,
        "is_eager": False,
        "reply_to": sent.properties.get("reply_to"),
        "correlation_id": sent.properties.get("correlation_id"),
        "properties": sent.properties,
        "delivery_info": {
            "exchange": sent.exchange,
            "routing_key": sent.routing_key,
            "priority": job.priority,
            "redelivered": redelivered,
        },
    }
    if request.get("ignore_result") is None:
        request["ignore_result"] = task.ignore_result
    with _local_backend(task), _as_if_committed():
        trace = tracer_of(task, app, WORKER)
        if isinstance(task, ReliableTask):
            trace = that_answers(task, trace, keep_frames=True)
        value, info, _, _ = trace(str(request["id"]), args, kwargs, request)
    return value, info


@contextlib.contextmanager
def _local_backend(task: Any) -> Iterator[None]:
    """Results go to the row in any case; a result backend across the network is left out."""
    backend = wrapped_by(task.backend)
    module = type(backend).__module__
    local = module.startswith(_LOCAL_BACKENDS) or getattr(backend, "backend", None) == "memory"
    if local or is_disabled(backend):
        yield
        return
    with without_backend(task):
        yield


@contextlib.contextmanager
def _as_if_committed() -> Iterator[None]:
    """In a test's open transaction, do what the commit of a job would: run its function's on_commit hooks, once."""
    open_ones = [connection for connection in made_connections() if in_transaction(connection)]
    before = [(connection, hooks_count(connection)) for connection in open_ones]
    yield
    for connection, start in before:
        if connection.vendor == "postgresql":
            # The run has checked them; the test's own transaction goes on as it was (Django's own check does the same).
            with connection.cursor() as cursor:
                cursor.execute("SET CONSTRAINTS ALL DEFERRED")
        for hook, robust in take_hooks(connection, start):
            try:
                hook()
            except Exception:
                if not robust:
                    raise
                logger.exception("A robust on_commit hook of a job failed.")
