"""What people, the sweeper and workers without the code do to jobs from outside a run. Nothing waits for a function."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from django.db import IntegrityError, OperationalError, connections, transaction
from django.db.models import Case, F, Value, When

from reliable_jobs.backoff import crash_delay
from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import groups, workflows
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.lifecycle.deaths import deaths
from reliable_jobs.lifecycle.later_steps import cancel_behind
from reliable_jobs.lifecycle.listeners import tell
from reliable_jobs.lifecycle.locks import impatient, is_lock_timeout
from reliable_jobs.lifecycle.settle import fail, run_again
from reliable_jobs.lifecycle.taken_over import why_never_sent
from reliable_jobs.lifecycle.transition import (
    ERROR_LIMIT,
    Claim,
    record,
    transition,
)
from reliable_jobs.message.row_to_message import rerouted
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import FINAL, EventKind, Reason, Status


@dataclasses.dataclass
class Report:
    """What an action on several jobs did: the ids that changed, and why the others did not."""

    done: list[uuid.UUID] = dataclasses.field(default_factory=list)
    skipped: dict[uuid.UUID, str] = dataclasses.field(default_factory=dict)

    def add(self, other: Report) -> None:
        """Take in what another one says."""
        self.done += other.done
        self.skipped.update(other.skipped)


_BATCH = 1000
#: How long the requeue of a batch waits for open transactions that have used its jobs' keys, in milliseconds.
KEY_WAIT_MS = 200


def requeue(ids: Iterable[uuid.UUID], using: str, *, actor: str, queue: str | None = None) -> Report:
    """A person's "again": settled jobs start anew with fresh counters, waiting ones become due now. Running ones are
    skipped. Nothing waits for a running function.

    Args:
        actor: who asks, for the history.
        queue: send them to this queue instead of the one they had.
    """
    report = Report()
    wanted = list(ids)
    for start in range(0, len(wanted), _BATCH):
        _requeue_batch(wanted[start : start + _BATCH], using, actor, queue, report)
    return report


def _requeue_batch(ids: Sequence[uuid.UUID], using: str, actor: str, queue: str | None, report: Report) -> None:
    with transaction.atomic(using=using):
        groups.reopen_for(ids, using)
        workflows.allow_again(ids, using)
        rows = Job.objects.using(using)
        # A held one goes on by itself: other tasks do its work.
        idle = rows.filter(pk__in=ids).exclude(status=Status.RUNNING).exclude(status=Status.WAITING, due_at=None)
        locked = list(idle.defer("payload").lock())
        _explain_skips(ids, {job.pk for job in locked}, using, report)
        never_sent = {job.pk: why for job in locked if (why := why_never_sent(job))}
        report.skipped.update(never_sent)
        locked = [job for job in locked if job.pk not in never_sent]
        keyed = {job.pk for job in locked if job.is_final and job.key is not None and job.live_key is None}
        plain = [job.pk for job in locked if job.pk not in keyed]
        changes: dict[str, Any] = {
            "status": Status.WAITING,
            "reason": Reason.REQUEUED,
            "epoch": F("epoch") + 1,
            "requeues": F("requeues") + 1,
            "sends": 0,
            "due_at": Now(),
            "check_at": None,
            "failures": 0,
            "crashes": 0,
            "interruptions": 0,
            "started_at": None,
            "finished_at": None,
            "deadline_at": None,
            "expires_at": None,
            "result": None,
            "exception": None,
            "subtasks": None,
        }
        if queue is not None:
            changes["queue"] = queue
        rows.filter(pk__in=plain).update(**changes)
        taken, busy = _take_keys_again(rows, [job for job in locked if job.pk in keyed], changes)
        for job in locked:
            if job.pk in busy:
                report.skipped[job.pk] = f"key {job.key!r} in use by an open transaction; try again"
            elif job.pk in keyed - taken:
                report.skipped[job.pk] = f"key {job.key!r} belongs to a newer unfinished job"
        done = [*plain, *taken]
        if queue is not None:
            moved = [job for job in locked if job.pk not in keyed or job.pk in taken]
            for job in moved:
                job.envelope = rerouted(job.envelope, queue)
            rows.bulk_update(moved, ["envelope"], batch_size=200)
        before = {job.pk: job.status for job in locked}
        _record_many(
            done,
            using,
            EventKind.REQUEUE,
            actor,
            lambda pk: f"was {before[pk]}" + (f", to queue {queue}" if queue else ""),
        )
        report.done.extend(done)
        tell(done, using)


def _take_keys_again(rows: Any, jobs: Sequence[Job], changes: dict[str, Any]) -> tuple[set[uuid.UUID], set[uuid.UUID]]:
    """Requeue jobs whose keys had become free. All at once, where none has been taken meanwhile; else one by one, to
    see which.

    Returns:
        those whose keys still were free, and those whose keys an open transaction has used.
    """
    ids = [job.pk for job in sorted(jobs, key=lambda job: (job.task, job.key or "", job.pk))]
    if not ids:
        return set(), set()
    if _take_keys(rows, ids, changes, KEY_WAIT_MS) is None:
        return set(ids), set()
    wait = max(1, KEY_WAIT_MS // len(ids))
    answers = {pk: _take_keys(rows, [pk], changes, wait) for pk in ids}
    taken = {pk for pk, error in answers.items() if error is None}
    return taken, {pk for pk, error in answers.items() if isinstance(error, OperationalError)}


def _take_keys(rows: Any, ids: Sequence[uuid.UUID], changes: dict[str, Any], wait_ms: int) -> Exception | None:
    """Requeue them; or say why not. An open transaction that has used one of the keys is not waited for: it may be a
    run, and it may want a key that is taken here."""
    try:
        with impatient(rows.db, wait_ms), transaction.atomic(using=rows.db):
            rows.filter(pk__in=ids).update(**changes, live_key=F("key"))
    except IntegrityError as error:
        return error
    except OperationalError as error:
        if not is_lock_timeout(error):
            raise
        return error
    return None


def cancel(ids: Iterable[uuid.UUID], using: str, *, actor: str, reason: str = Reason.NONE) -> Report:
    """Settle waiting jobs as cancelled, and the later steps of their chains. Running ones are skipped, and nothing
    waits for their functions."""
    report = Report()
    wanted = list(ids)
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        with transaction.atomic(using=using):
            rows = Job.objects.using(using)
            why = clean(f"cancelled by {actor}", ERROR_LIMIT)
            bodies = groups.cancel_for(batch, using, why=why, reason=reason)
            locked = list(rows.filter(pk__in=batch, status=Status.WAITING).lock().values_list("pk", flat=True))
            _explain_skips(batch, {*locked, *bodies}, using, report)
            rows.filter(pk__in=locked, status=Status.WAITING).update(
                status=Status.CANCELLED,
                reason=reason,
                epoch=F("epoch") + 1,
                finished_at=Now(),
                live_key=_freed_key(),
                error=why,
            )
            cancel_behind(locked, using)
            done = list(dict.fromkeys([*bodies, *locked]))
            _record_many(done, using, EventKind.CANCEL, actor, lambda pk: str(reason))
            report.done.extend(done)
            tell(done, using)
    return report


def _freed_key() -> Any:
    return Case(When(key_forever=True, then=F("live_key")), default=Value(None))


def _explain_skips(ids: Sequence[uuid.UUID], locked: set[uuid.UUID], using: str, report: Report) -> None:
    missing = [pk for pk in ids if pk not in locked]
    if not missing:
        return
    found = Job.objects.using(using).filter(pk__in=missing).values_list("pk", "status", "due_at")
    rows = {pk: (status, due_at) for pk, status, due_at in found}
    for pk in missing:
        status, due_at = rows.get(pk, (None, None))
        if status is None:
            report.skipped[pk] = "no such job"
        elif status == Status.WAITING and due_at is None:
            report.skipped[pk] = "held: it goes on when the step before it has succeeded"
        elif status in (*FINAL, Status.SENT):
            report.skipped[pk] = f"already {status}"
        else:
            report.skipped[pk] = "running"


def _record_many(
    ids: Sequence[uuid.UUID], using: str, kind: str, actor: str, detail: Callable[[uuid.UUID], str]
) -> None:
    JobEvent.objects.using(using).bulk_create(
        JobEvent(job_id=pk, kind=kind, actor=clean(actor, 255)[:255], detail=clean(detail(pk), ERROR_LIMIT))
        for pk in ids
    )


def rescue(using: str, limit: int, *, actor: str = "sweeper", after_restart: bool = False) -> int:
    """Take jobs back from dead runs: the lease is over and nobody holds the row. Returns how many.

    Args:
        after_restart: also where the database has not been up for a lease. Its clients may not have reconnected yet.
    """
    if not after_restart and not _has_been_up_for_a_lease(using):
        return 0
    with transaction.atomic(using=using):
        lost = list(Job.objects.using(using).lost_runs().defer("payload", "envelope").lock()[:limit])
        if not lost:
            return 0
        rescued = 0
        how_ended = deaths(lost, using)
        for job in lost:
            death = how_ended.get(job.pk)
            how = f"was ended: {death.detail}" if death else "ended without a word"
            why = f"run {job.token} on {job.worker or 'an unknown worker'} {how} (start {job.crashes})"
            if transition(
                job,
                using,
                Status.WAITING,
                token=None,
                lease_at=None,
                deadline_at=None,
                sends=0,
                check_at=None,
                due_at=Now() + datetime.timedelta(seconds=crash_delay(job.crashes) if job.crashes > 1 else 0),
                reason=Reason.TIME_LIMIT if death and death.kind == EventKind.TIME_LIMIT else Reason.CRASH,
            ):
                record(job.pk, using, EventKind.RESCUE, actor, why)
                tell([job.pk], using)
                rescued += 1
    return rescued


def _has_been_up_for_a_lease(using: str) -> bool:
    if connections[using].vendor != "postgresql":
        return True
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT clock_timestamp() - pg_postmaster_start_time() > make_interval(secs => %s)", [settings.LEASE]
        )
        return bool(cursor.fetchone()[0])


def hand_back(
    job_id: uuid.UUID,
    using: str,
    *,
    worker: str,
    why: str,
    delay: float,
    content_version: int | None = None,
    traceback: str = "",
    failed: Callable[[Job], None] | None = None,
) -> str | None:
    """A worker without the job's code gives it back; after DEPLOY_GRACE it is parked. Returns the status written, the
    one found where the job does not wait for a run or is locked, or None where there is no row.

    Args:
        content_version: that the message names; a stale one gives nothing back.
        failed: writes what follows the parked job, in this transaction.
    """
    with transaction.atomic(using=using):
        # Not one that keeps the place of a step: it would begin the job anew.
        rows = Job.objects.using(using).filter(pk=job_id, status=Status.WAITING, due_at__isnull=False)
        if content_version is not None:
            rows = rows.filter(content_version=content_version)
        job = rows.annotate(now=Now()).lock().first()
        if job is None:
            seen = Job.objects.using(using).find(job_id)
            return seen.status if seen else None
        claim = Claim(job, using, job.now)  # type: ignore[attr-defined]
        tell([job_id], using)
        if job.deadline_at is not None and job.deadline_at <= claim.now:
            if fail(claim, worker, Reason.PARKED, why, traceback, kind=EventKind.PARKED) and failed is not None:
                failed(job)
            return Status.FAILED
        run_again(
            claim,
            worker,
            Reason.PARKED,
            delay=delay,
            error=why,
            traceback=traceback,
            kind=None if job.deadline_at else EventKind.PARKED,
            park_at=datetime.timedelta(seconds=settings.DEPLOY_GRACE),
            began=False,
        )
        return Status.WAITING
