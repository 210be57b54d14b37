"""``revoke()``, Flower's revoke and ``terminate`` mean cancelled, never rescued.

Celery keeps revoked ids in each worker's memory, for hours. A person's requeue outweighs a revocation that is older
than it; a newer one cancels the job again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.db import Error as DatabaseError
from django.db import OperationalError, transaction
from django.db.models import Max

from reliable_jobs import databases, lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.compat.celery_worker import revoked_at, revoked_stamps
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import db_errors
from reliable_jobs.lifecycle.locks import impatient, is_lock_timeout
from reliable_jobs.message.row_to_message import HEADER, as_uuid, foreign_id
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.run import arrival
from reliable_jobs.status import EventKind, Reason, Status
from reliable_jobs.worker.parking import aside

#: How long a cancel of a terminated run waits for the dead child's database session to end, in seconds.
TERMINATED_PATIENCE = 10.0
#: How long it waits for the row's lock before it looks for a run with a lease, in milliseconds.
LOCK_PATIENCE_MS = 1000
#: How long the parent process waits to hear whether a requeue is newer than a revocation, in seconds.
LOOK_PATIENCE = 5.0

#: Stamps by which jobs were revoked, and when this worker first saw that (monotonic). Celery keeps no time.
_stamps: dict[tuple[str, str], float] = {}
#: Revoked ids that have been dealt with, and when each was revoked; at most as many as Celery keeps.
_seen: dict[Any, float] = {}


def on_revoked(
    sender: Any = None, request: Any = None, terminated: bool = False, expired: bool = False, **_: Any
) -> None:
    """Celery acked a message as revoked: its job is cancelled. Flower's revoke and ``terminate`` too."""
    if not getattr(sender, "writes_outbox", False):
        return
    alias, job_id = arrival.pointer_alias(request.get(HEADER)), foreign_id(request.id)
    if expired:
        # Only a message from elsewhere carries its expiry; ours has it in the row.
        aside(lambda: expire_foreign(sender, request, job_id, alias), f"expiry of job {job_id}")
        return
    cancel_aside(job_id, alias, terminated=terminated)


def cancel_aside(job_id: uuid.UUID, alias: str, *, terminated: bool) -> None:
    aside(lambda: cancel_revoked(job_id, alias, terminated), f"revocation of job {job_id}")


def expire_foreign(task: Any, request: Any, job_id: uuid.UUID, alias: str) -> None:
    """Keep a message that Celery acked because its ``expires`` had passed as an expired row, to be seen (I7)."""
    arrival.write_row(task, job_id, alias, request)
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
        with transaction.atomic(using=alias):
            if terminated:
                _outwait_run(job_id, alias)
            report = lifecycle.cancel([job_id], alias, actor="revoke", reason=Reason.REVOKED)
        if report.skipped.get(job_id) != "running" or time.monotonic() > deadline:
            return
        time.sleep(0.2)


def _outwait_run(job_id: uuid.UUID, alias: str) -> None:
    """Lock a job as soon as its terminated run lets go of it, within a transaction. A child that gives its job back as
    it dies makes it due at once: a sweep that came between would send it to be run again."""
    try:
        with impatient(alias, LOCK_PATIENCE_MS), transaction.atomic(using=alias):
            Job.objects.using(alias).filter(pk=job_id).lock(wait=True).values_list("pk").first()
    except OperationalError as error:
        if not is_lock_timeout(error):
            raise


def terminate(job_id: uuid.UUID, alias: str, kill: Callable[[], None]) -> None:
    """Cancel a job of a message that carries several.

    Args:
        kill: ends the process that has the message. Called only where the job's row waits and is held, by a first run:
            it runs there. What was sent alone runs with a committed claim, and the worker that has it is told as well.
    """
    try:
        held = lifecycle.cancel([job_id], alias, actor="revoke", reason=Reason.REVOKED).skipped.get(job_id) == "running"
    except DatabaseError as error:
        if not db_errors.is_conflict(error, alias):
            raise
        held = True  # without SKIP LOCKED it has waited for the run
    if held and Job.objects.using(alias).filter(pk=job_id).still(Status.WAITING).exists():
        kill()
        cancel_revoked(job_id, alias, terminated=True)


def remember_old() -> None:
    """Call it when the worker starts: what it has read from a state file was revoked before any requeue from now on."""
    _seen.update(revoked_at())


def cancel_newly_revoked() -> None:
    """``app.control.revoke`` and Flower reach this worker's memory only; a job that waits without a message (delayed,
    retrying) would be revoked when it is due, or not at all if the worker is restarted first."""
    note_stamps()
    revoked = revoked_at()
    new = {task_id: stamp for task_id, stamp in revoked.items() if _seen.get(task_id) != stamp}
    ages = {job_id: time.monotonic() - new[name] for name in new if (job_id := as_uuid(name)) is not None}

    def cancel(alias: str) -> None:
        requeued = _requeue_ages(ages, alias)
        wanted = [job_id for job_id, age in ages.items() if not _outweighs(requeued.get(job_id), age)]
        lifecycle.cancel(wanted, alias, actor="revoke", reason=Reason.REVOKED)

    if ages:
        databases.on_each(cancel, "The revocation")
    _seen.clear()
    _seen.update(revoked)


def _requeue_ages(ids: Iterable[uuid.UUID], using: str) -> dict[uuid.UUID, float]:
    """How long ago each job was last requeued by a person, in seconds; those that never were are left out."""
    events = JobEvent.objects.using(using).filter(job_id__in=list(ids), kind=EventKind.REQUEUE)
    found = events.order_by().values("job_id").annotate(last=Max("at"), now=Now())
    return {row["job_id"]: (row["now"] - row["last"]).total_seconds() for row in found}


def _outweighs(requeued: float | None, revoked: float) -> bool:
    """Whether a requeue came after a revocation, by their ages in seconds. Some databases tell milliseconds only."""
    return requeued is not None and requeued < revoked - 0.005


def of_message(task_id: str, stamps: Mapping[str, Any] | None) -> float | None:
    """When this worker heard (monotonic clock) that a message is revoked, by its id or by one of its stamps; None
    if it is not."""
    found = [_stamps.get((header, str(value))) for header, values in (stamps or {}).items() for value in _each(values)]
    times = [at for at in (revoked_at().get(task_id), *found) if at is not None]
    return max(times, default=None)


def note_stamps() -> None:
    """Remember since when this worker knows of each stamp that is revoked."""
    for header, values in revoked_stamps().items():
        for value in _each(values):
            _stamps.setdefault((header, str(value)), time.monotonic())


def _each(values: Any) -> Iterable[Any]:
    return values if isinstance(values, (list, tuple, set)) else (values,)


def newer_than_requeue(task_id: str, revoked: float, alias: str) -> bool:
    """Whether a job was revoked after a person's last requeue. False where the database does not say so in time: the
    sweep loop looks again.

    Args:
        revoked: when, by the monotonic clock.
    """
    job_id = foreign_id(task_id)
    age, newer = time.monotonic() - revoked, list[bool]()

    def look() -> None:
        newer.append(not _outweighs(_requeue_ages([job_id], alias).get(job_id), age))

    thread = aside(look, f"revocation of job {job_id}")
    if thread is not None:
        thread.join(LOOK_PATIENCE)
    return newer == [True]
