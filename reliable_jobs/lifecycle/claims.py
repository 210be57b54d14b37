"""Taking a job for a run."""

from __future__ import annotations

import datetime
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.db.models import DateTimeField, F
from django.db.models.functions import Least
from django.utils.timezone import is_naive, make_aware

from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import sql
from reliable_jobs.lifecycle.transition import Claim, Refusal, transition
from reliable_jobs.models import Job, PauseKind
from reliable_jobs.status import FINAL, Status

#: Two suspects that are claimed at the same instant would not see each other. This keeps the threads of one process
#: apart, which die together for certain. Two processes of a node may still claim one each at the same instant.
_one_claim_at_a_time = threading.Lock()


def claim_atomic(
    job_id: uuid.UUID, content_version: int, using: str, *, root_id: uuid.UUID | None = None
) -> Claim | Refusal:
    """Lock the row for a first run. Call it inside the function's transaction; others see only a locked row until that
    commits.

    Args:
        root_id: the workflow that the message names, where it is known.
    """
    claim = _lock_if_fit(job_id, content_version, using, root_id)
    return Refusal.SUSPECT if isinstance(claim, Claim) and claim.job.crashes else claim


def _lock_if_fit(
    job_id: uuid.UUID, content_version: int, using: str, root_id: uuid.UUID | None = None
) -> Claim | Refusal:
    """Lock the row and see whether a message of this content version may run it now."""
    locked = _lock_row(using, job_id, root_id)
    if locked is None:
        seen = Job.objects.using(using).find(job_id)
        if seen is None:
            return Refusal.MISSING
        return Refusal.FINAL if seen.status in FINAL else Refusal.LOCKED
    job, now = locked.job, locked.now
    if job.status in FINAL:
        return Refusal.FINAL
    if job.content_version != content_version:
        return Refusal.STALE
    if job.status != Status.WAITING:
        # Neither final nor running: a status that somebody has written by hand counts as held.
        return Refusal.LOCKED
    if locked.workflow_cancelled:
        return Refusal.CANCELLED
    if job.due_at is None or job.due_at > now:
        return Refusal.NOT_DUE
    if locked.paused_by:
        return Refusal.QUEUE_PAUSED if locked.paused_by == PauseKind.QUEUE else Refusal.TASK_PAUSED
    return Claim(job, using, now)


def claim_to_report(job_id: uuid.UUID, content_version: int, using: str, worker: str) -> Claim | Refusal:
    """Lock the row to report an error outside a run: a job that waits as its message says, or one that this worker's
    own thread had claimed and left. Call it in a transaction.

    Args:
        worker: of the calling thread; no other has its name.
    """
    claim = _lock_if_fit(job_id, content_version, using)
    if claim is not Refusal.LOCKED:
        return claim
    mine = Job.objects.using(using).filter(pk=job_id, worker=worker).still(Status.RUNNING)
    job = mine.annotate(now=Now()).defer("payload").lock().first()
    return claim if job is None else Claim(job, using, job.now, job.token)  # type: ignore[attr-defined]


def claim_many(task: str, content_versions: Mapping[uuid.UUID, int], using: str) -> list[Claim]:
    """Lock, in a transaction of the caller's, those of a bundle's jobs that are plainly fit for a first run, in order.

    What was started, interrupted or has failed before is left to a message of its own.
    """
    found = _lock_bundle(using, task, list(content_versions))
    claims = {job.pk: Claim(job, using, now) for job, now in found if job.content_version == content_versions[job.pk]}
    return [claims[job_id] for job_id in content_versions if job_id in claims]


def claim_committed(
    job_id: uuid.UUID,
    content_version: int,
    using: str,
    *,
    worker: str,
    lease: float,
    deadline: float | None = None,
    root_id: uuid.UUID | None = None,
) -> Claim | Refusal:
    """Take the row with a token and a lease, in a transaction of its own, and count the start as a crash until the run
    reports: simultaneous copies can't each count, and a run that never reports has been counted.

    Args:
        lease: seconds until the sweeper may take the job back from a dead run.
        deadline: seconds after which the lease is not extended (non-atomic runs).
        root_id: as in :func:`claim_atomic`.
    """
    with _one_claim_at_a_time, transaction.atomic(using=using):
        claim = _lock_if_fit(job_id, content_version, using, root_id)
        if isinstance(claim, Refusal):
            return claim
        job = claim.job
        if job.crashes and _another_suspect_runs(job, using, worker):
            return Refusal.ALONE
        token = uuid.uuid4()
        if not sql.write(using, sql.CLAIM, token, lease, deadline or None, worker, settings.RELEASE, job.pk, job.epoch):
            return Refusal.LOCKED
        job.status = Status.RUNNING
        job.crashes += 1
        claim.token, claim.first_start = token, job.started_at is None
        job.started_at = job.started_at or claim.now
        return claim


def _another_suspect_runs(job: Job, using: str, worker: str) -> bool:
    """Whether a job that has crashed before runs on this worker node, in whichever of its processes: if the whole node
    dies, that would be blamed on both."""
    node = worker.split(" pid ")[0]
    suspects = (
        Job.objects.using(using)
        .filter(status=Status.RUNNING, crashes__gte=2, worker__startswith=f"{node} pid ")
        .exclude(pk=job.pk)
    )
    if suspects.filter(lease_at__gt=Now()).exists():
        return True
    # An atomic function outlives its lease: while it lives, its row is locked.
    ended = suspects.lock().values_list("pk", flat=True)
    return bool(set(suspects.values_list("pk", flat=True)) - set(ended))


def step_back(job_id: uuid.UUID, using: str, delay: float) -> bool:
    """A suspect makes room for another one: due again after ``delay`` seconds, published by the sweeper."""
    with transaction.atomic(using=using):
        job = Job.objects.using(using).filter(pk=job_id).still(Status.WAITING).lock().first()
        return job is not None and transition(
            job, using, Status.WAITING, sends=0, check_at=None, due_at=Now() + datetime.timedelta(seconds=delay)
        )


def lock_by_token(claim: Claim) -> bool:
    """Lock the row of a committed claim inside the function's transaction; from there the lock is the lease.

    Waits for the row: with our token on it nobody can hold it but for a moment (a copy of the message that looks at
    it, the heartbeat). Skipping it then would leave the claim to its lease, and a crash counted that never happened.
    """
    return (
        Job.objects.using(claim.using)
        .filter(pk=claim.job.pk, token=claim.token)
        .still(Status.RUNNING)
        .lock(wait=True)
        .values_list("pk")
        .first()
        is not None
    )


def extend_lease(claim: Claim, lease: float) -> bool:
    """Heartbeat of a non-atomic run. False when the run has lost its job; True also while it holds the row itself."""
    rows = Job.objects.using(claim.using).filter(pk=claim.job.pk, token=claim.token).still(Status.RUNNING)
    with transaction.atomic(using=claim.using):
        mine = rows.lock().values_list("pk", flat=True)
        rows.filter(pk__in=list(mine)).update(
            lease_at=Least(Now() + datetime.timedelta(seconds=lease), F("deadline_at"))
        )
    return rows.exists()


# --- The lock ---------------------------------------------------------------------------------------------------------


class _Locked(NamedTuple):
    """A job's row, as the statement that locked it has seen it."""

    job: Job
    #: By the database's clock.
    now: datetime.datetime
    workflow_cancelled: bool
    #: "queue" or "task"; None where neither is paused.
    paused_by: str | None


def _lock_row(alias: str, job_id: uuid.UUID, root_id: uuid.UUID | None) -> _Locked | None:
    """Lock a job's row where that can be done at once.

    Must be called in a transaction.

    Args:
        root_id: the workflow that the message names. Another one than the row's costs a statement more.
    """
    key = Job._meta.pk.to_python(job_id)  # a request has it as text
    found = _select(alias, sql.LOCK_ROW, sql.CLAIMED, [root_id, key])
    if not found:
        return None
    job, now, (workflow_cancelled, anything_paused) = found[0]
    if job.root_id != root_id:
        workflow_cancelled = sql.rows(alias, sql.WORKFLOW_CANCELLED, job.pk)[0][0]
    paused_by = sql.rows(alias, sql.PAUSED_BY, job.pk)[0][0] if anything_paused else None
    return _Locked(job, now, bool(workflow_cancelled), paused_by)


def _lock_bundle(alias: str, task: str, job_ids: Sequence[uuid.UUID]) -> list[tuple[Job, datetime.datetime]]:
    """Lock those jobs of a task that are plainly fit for a first run, as far as that can be done at once.

    Must be called in a transaction.
    """
    found = _select(alias, sql.LOCK_BUNDLE, sql.CLAIMED_AND_SENT, [task, *job_ids], len(job_ids))
    return [(job, now) for job, now, _ in found]


def _select(
    alias: str, text: str, names: tuple[str, ...], values: Sequence[Any], count: int = 1
) -> list[tuple[Job, datetime.datetime, Sequence[Any]]]:
    """The rows, the database's time, and what lies between them."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(sql.in_words(connection, text, count), sql.prepared(connection, values))
        rows = cursor.fetchall()
    found = []
    for row in rows:
        columns, more, now = row[: len(names)], row[len(names) : -1], row[-1]
        if connection.vendor != "postgresql":
            *columns, now = _python(connection, names, [*columns, now])
        found.append((Job.from_db(alias, names, columns), now, more))
    return found


def _python(connection: Any, names: tuple[str, ...], row: Sequence[Any]) -> list[Any]:
    """A row's values as the model has them; MySQL and SQLite know no UUID, boolean or time zone, SQLite no time."""
    fields: list[Any] = [*map(Job._meta.get_field, names), DateTimeField()]
    values = [field.to_python(value) for field, value in zip(fields, row, strict=True)]
    zone = connection.timezone
    return [
        make_aware(value, zone) if zone and isinstance(value, datetime.datetime) and is_naive(value) else value
        for value in values
    ]
