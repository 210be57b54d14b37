"""What a worker or beat process gets: the sweep loop beside it, session settings, what the parent process sees of dying
children, and a place for messages that nobody can run.

The parent process of a prefork pool must not keep a database connection that its children would inherit: what it has
to write is written by :func:`aside`, in a short-lived thread whose connection is closed before it ends.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery, bootsteps, signals
from celery.concurrency import prefork, solo
from celery.exceptions import InvalidTaskError
from celery.worker import state as worker_state
from celery.worker.request import Request
from django.db import transaction
from django.db.backends.signals import connection_created

from reliable_jobs import databases, kept, lifecycle, receipts, tasks
from reliable_jobs.conf import settings
from reliable_jobs.loop import SweepLoop
from reliable_jobs.message import HEADER, as_uuid
from reliable_jobs.outbox import pointer_alias
from reliable_jobs.parking import ParkingStep, aside, misshapen
from reliable_jobs.schedule import SWEEP_TASK
from reliable_jobs.status import EventKind, Reason

logger = logging.getLogger("reliable_jobs.worker")

#: How long a cancel of a terminated run waits for the dead child's database session to end, in seconds.
TERMINATED_PATIENCE = 10.0

#: A killed worker's statement would run on, its locks held, until the server notices (4.7 s measured; hours for a
#: lost host). Settings that an older server does not know are left out.
POSTGRESQL_SESSION = (
    (140000, "client_connection_check_interval", "2s"),
    (120000, "tcp_user_timeout", "20s"),
    (0, "tcp_keepalives_idle", "10"),
    (0, "tcp_keepalives_interval", "5"),
    (0, "tcp_keepalives_count", "3"),
)


# --- requests as the parent process sees them -------------------------------------------------------------------------


class _GivenBackRequest(Request):
    """A request whose message goes back when a hard time limit has ended its child: to the careful path, which counts
    such an end and bounds it."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if soft or worker_state.should_terminate:
            super().on_timeout(soft, timeout)
            return
        worker_state.task_ready(self)
        logger.error("Hard time limit (%ss) exceeded for %s[%s]; its work is done again.", timeout, self.name, self.id)
        self.out_of_time(timeout)
        self.reject(requeue=True)

    def out_of_time(self, timeout: float) -> None:
        """What there is to record."""

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        # billiard tells of the time limit here first, and Celery would acknowledge the message before on_timeout.
        if not isinstance(_cause(exc_info), TimeLimitExceeded):
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)


def _cause(exc_info: ExceptionInfo) -> Any:
    return getattr(exc_info.exception, "exc", exc_info.exception)


class ReliableRequest(_GivenBackRequest):
    """Celery's request, with the endings that a reliable task answers differently. ``Task.Request`` is the documented
    hook for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises celery.exceptions.InvalidTaskError: the consumer parks the message."""
        super().__init__(*args, **kwargs)
        why = misshapen(self)
        if why is not None:
            raise InvalidTaskError(why)

    def _pointer(self) -> dict[str, Any]:
        pointer = self.request_dict.get(HEADER)
        return pointer if isinstance(pointer, dict) else {}

    def _using(self) -> str:
        return pointer_alias(self._pointer())

    def revoked(self) -> bool:
        """A worker remembers a revoked id for hours; a job that a person has requeued since is not revoked by that."""
        if self.id in worker_state.revoked and self._pointer().get("requeues"):
            return False
        return bool(super().revoked())

    def out_of_time(self, timeout: float) -> None:
        self._died(EventKind.TIME_LIMIT, f"hard time limit of {timeout} s exceeded; the process was killed")

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """A child that died without a word: recorded; Celery then rejects the message back to the queue."""
        if isinstance(exc := _cause(exc_info), (WorkerLostError, SystemExit)):
            self._died(EventKind.CRASH, str(exc) or repr(exc))
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _died(self, kind: str, detail: str) -> None:
        job_id, using, worker = receipts.foreign_id(self.id), self._using(), str(self._hostname)
        aside(lambda: lifecycle.record(job_id, using, kind, worker, detail), f"{kind} of job {self.id}")


class BundleRequest(_GivenBackRequest):
    """The request of a message that carries many jobs. A revoked one among them is cancelled as any job that waits
    without a message of its own: see :func:`_cancel_newly_revoked`."""


def _on_revoked(
    sender: Any = None, request: Any = None, terminated: bool = False, expired: bool = False, **_: Any
) -> None:
    """Celery acked a message as revoked: its job is cancelled, never rescued. Flower's revoke and ``terminate`` too."""
    if not getattr(sender, "writes_outbox", False):
        return
    alias, job_id = pointer_alias(request.get(HEADER)), receipts.foreign_id(request.id)
    if expired:
        # Only a message from elsewhere carries its expiry; ours has it in the row.
        aside(lambda: expire_foreign(sender, request, job_id, alias), f"expiry of job {job_id}")
        return
    aside(lambda: cancel_revoked(job_id, alias, terminated), f"revocation of job {job_id}")


def expire_foreign(task: Any, request: Any, job_id: uuid.UUID, alias: str) -> None:
    """Keep a message that Celery acked because its ``expires`` had passed as an expired row, to be seen (I7)."""
    receipts.ensure(task, job_id, alias, request)
    with transaction.atomic(using=alias):
        claim = lifecycle.claim_atomic(job_id, 0, alias)
        if isinstance(claim, lifecycle.Claim):
            claim.job.expires_at = request.expires
            lifecycle.expire(claim, f"{request.hostname or 'worker'}")


def cancel_revoked(job_id: uuid.UUID, alias: str, terminated: bool) -> None:
    """Cancel the row; a terminated run's lock may outlive it by a moment, and its lease longer."""
    deadline = time.monotonic() + (TERMINATED_PATIENCE if terminated else 1.0) + (settings.LEASE if terminated else 0)
    while True:
        lifecycle.rescue(alias, settings.SWEEP_LIMIT, actor="revoke")
        report = lifecycle.cancel([job_id], alias, actor="revoke", reason=Reason.REVOKED)
        if report.skipped.get(job_id) != "running" or time.monotonic() > deadline:
            return
        time.sleep(0.2)


# --- processes --------------------------------------------------------------------------------------------------------

_revocations_seen: set[str] = set()


def _cancel_newly_revoked() -> None:
    """``app.control.revoke`` and Flower reach this worker's memory only; a job that waits without a message (delayed,
    retrying) would be revoked when it is due, or not at all if the worker is restarted first."""
    new = {str(task_id) for task_id in list(worker_state.revoked)} - _revocations_seen
    job_ids = [job_id for job_id in map(as_uuid, new) if job_id is not None]
    if job_ids:
        databases.on_each(
            lambda alias: lifecycle.cancel(job_ids, alias, actor="revoke", reason=Reason.REVOKED), "The revocation"
        )
    _revocations_seen.update(new)


def _on_worker_init(sender: Any = None, **kwargs: Any) -> None:
    app: Celery = sender.app
    app.steps["consumer"].add(ParkingStep)
    app.steps["worker"].add(SweepStep)
    connection_created.connect(_prepare_session, dispatch_uid="reliable_jobs.session")
    kept.leave_pools_to_the_parent()


def _on_worker_set_up(instance: Any = None, **kwargs: Any) -> None:
    # Later than worker_init, at which the fixup connects its receivers, and before the pool forks.
    if not kept.keep_connections(instance):
        logger.info("Database connections are closed around every task, as Celery does it.")
    if not issubclass(instance.pool_cls, (prefork.TaskPool, solo.TaskPool)):
        # After a reconnect Celery would raise its prefetch count again with each ack. Where the pool's threads send
        # them, they wait for the broker's answer on the connection that the main thread reads from, and hang for good.
        instance.app.conf.worker_enable_prefetch_count_reduction = False


def _prepare_session(connection: Any, **kwargs: Any) -> None:
    if connection.vendor != "postgresql":
        return
    known = [(name, value) for version, name, value in POSTGRESQL_SESSION if connection.pg_version >= version]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT " + ", ".join(["set_config(%s, %s, false)"] * len(known)), [part for pair in known for part in pair]
        )


class SweepStep(bootsteps.StartStopStep):
    """The sweep loop beside a worker. A step, because Celery's signal worker_ready is not sent for a worker of
    ``celery.contrib.testing``. After the pool, whose children must not inherit its connections."""

    requires = ("celery.worker.components:Pool",)

    def include_if(self, worker: Any) -> bool:
        return bool(settings.WORKER_SWEEP_INTERVAL)

    def create(self, worker: Any) -> SweepLoop:
        return SweepLoop(
            worker.app,
            actor=f"worker {worker.hostname}",
            interval=settings.WORKER_SWEEP_INTERVAL,
            before=_cancel_newly_revoked,
        )


class _WithoutSweepTicks(logging.Filter):
    """Beat logs every tick; the sweeper's, one a second, would drown the others."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (isinstance(record.args, tuple) and SWEEP_TASK in record.args)


def _on_beat_init(sender: Any = None, **kwargs: Any) -> None:
    logging.getLogger("celery.beat").addFilter(_WithoutSweepTicks())
    if tasks.beat_loop is None:
        tasks.beat_loop = SweepLoop(sender.app, actor="beat", interval=None, keep_connections=True)
        tasks.beat_loop.start()


def connect() -> None:
    """Connect the receivers; called once by the app config. They cost nothing in a process that is no worker."""
    signals.worker_init.connect(_on_worker_init, dispatch_uid="reliable_jobs.worker_init")
    signals.celeryd_after_setup.connect(_on_worker_set_up, dispatch_uid="reliable_jobs.celeryd_after_setup")
    signals.beat_init.connect(_on_beat_init, dispatch_uid="reliable_jobs.beat_init")
    signals.beat_embedded_init.connect(_on_beat_init, dispatch_uid="reliable_jobs.beat_embedded_init")
    signals.task_revoked.connect(_on_revoked, dispatch_uid="reliable_jobs.task_revoked")
