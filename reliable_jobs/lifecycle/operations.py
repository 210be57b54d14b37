"""What people, and workers without the code, do to jobs from outside a run. Nothing waits for a function."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from django.db import IntegrityError, OperationalError, transaction
from django.db.models import Case, F, Value, When
from django.utils.translation import gettext_noop

from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.errors import JobParked
from reliable_jobs.lifecycle import announce, groups, workflows
from reliable_jobs.lifecycle.db_errors import class_of, clean
from reliable_jobs.lifecycle.held_places import why_never_sent
from reliable_jobs.lifecycle.later_steps import cancel_behind
from reliable_jobs.lifecycle.listeners import tell
from reliable_jobs.lifecycle.locks import impatient, is_lock_timeout
from reliable_jobs.lifecycle.settle import fail, run_again
from reliable_jobs.lifecycle.transition import ERROR_LIMIT, Claim, Subject, event
from reliable_jobs.message.row_to_message import rerouted
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import FINAL, EventKind, Reason, Status
from reliable_jobs.translatable import CANCELLED_BY, WAS, WAS_ELSEWHERE, Translatable


@dataclasses.dataclass
class Report:
    """What an action on several jobs did: the ids that changed, and why the others did not."""

    done: list[uuid.UUID] = dataclasses.field(default_factory=list)
    #: English; the admin shows them in the reader's language.
    skipped: dict[uuid.UUID, str] = dataclasses.field(default_factory=dict)

    def add(self, other: Report) -> None:
        """Take in what another one says."""
        self.done += other.done
        self.skipped.update(other.skipped)


_BATCH = 1000
_KEY_BUSY = gettext_noop("key '%(key)s' in use by an open transaction; try again")
_KEY_TAKEN = gettext_noop("key '%(key)s' belongs to a newer unfinished job")
#: How long the requeue of a batch waits for open transactions that have used its jobs' keys, in milliseconds.
KEY_WAIT_MS = 200


def requeue(
    ids: Iterable[uuid.UUID],
    using: str,
    *,
    actor: str,
    queue: str | None = None,
    act_id: uuid.UUID | None = None,
) -> Report:
    """A person's "again": settled jobs start anew with fresh counters, waiting ones become due now. Running ones are
    skipped. Nothing waits for a running function.

    Args:
        actor: who asks, for the history.
        queue: send them to this queue instead of the one they had.
        act_id: the bulk act that this is a step of, for the history.
    """
    report = Report()
    wanted = list(ids)
    for start in range(0, len(wanted), _BATCH):
        _requeue_batch(wanted[start : start + _BATCH], using, actor, queue, act_id, report)
    return report


def _requeue_batch(
    ids: Sequence[uuid.UUID], using: str, actor: str, queue: str | None, act_id: uuid.UUID | None, report: Report
) -> None:
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
            "run_started_at": None,
            "release": "",
            "error_class": "",
            "finished_at": None,
            "deadline_at": None,
            "expires_at": None,
            "paused_at": None,
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
                report.skipped[job.pk] = Translatable(_KEY_BUSY, key=job.key)
            elif job.pk in keyed - taken:
                report.skipped[job.pk] = Translatable(_KEY_TAKEN, key=job.key)
        again = [job for job in locked if job.pk not in keyed or job.pk in taken]
        if queue is not None:
            for job in again:
                job.envelope = rerouted(job.envelope, queue)
            rows.bulk_update(again, ["envelope"], batch_size=200)
        was = WAS_ELSEWHERE if queue else WAS
        events = [
            event(job, EventKind.REQUEUE, actor, was % {"status": job.status, "queue": queue}, act_id=act_id)
            for job in again
        ]
        JobEvent.objects.using(using).bulk_create(events)
        done = [job.pk for job in again]
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


def cancel(
    ids: Iterable[uuid.UUID],
    using: str,
    *,
    actor: str,
    reason: str = Reason.NONE,
    act_id: uuid.UUID | None = None,
) -> Report:
    """Settle waiting jobs as cancelled, and the later steps of their chains. Running ones are skipped, and nothing
    waits for their functions.

    Args:
        actor: who asks, for the history.
        act_id: the bulk act that this is a step of, for the history.
    """
    report = Report()
    wanted = list(ids)
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        with transaction.atomic(using=using):
            rows = Job.objects.using(using)
            why = clean(CANCELLED_BY % {"actor": actor}, ERROR_LIMIT)
            bodies = groups.cancel_for(batch, using, why=why, reason=reason)
            waiting = rows.filter(pk__in=batch).still(Status.WAITING).only("task", "queue").lock()
            by_id: dict[uuid.UUID, Job | Subject] = {job.pk: job for job in waiting}
            locked = list(by_id)
            by_id = {**{body.pk: body for body in bodies}, **by_id}
            _explain_skips(batch, set(by_id), using, report)
            rows.filter(pk__in=locked).still(Status.WAITING).update(
                status=Status.CANCELLED,
                reason=reason,
                epoch=F("epoch") + 1,
                finished_at=Now(),
                live_key=_freed_key(),
                error=why,
            )
            cancel_behind(locked, using)
            events = [
                event(job, EventKind.CANCEL, actor, str(reason), final=True, act_id=act_id) for job in by_id.values()
            ]
            JobEvent.objects.using(using).bulk_create(events)
            announce.of_events(events, using)
            report.done.extend(by_id)
            tell(by_id, using)
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
            report.skipped[pk] = Translatable(gettext_noop("no such job"))
        elif status == Status.WAITING and due_at is None:
            report.skipped[pk] = Translatable(gettext_noop("held: it goes on when the step before it has succeeded"))
        elif status in (*FINAL, Status.SENT):
            report.skipped[pk] = Translatable(gettext_noop("already %(status)s"), status=Status(status))
        else:
            report.skipped[pk] = Translatable(gettext_noop("running"))


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
        rows = Job.objects.using(using).filter(pk=job_id, due_at__isnull=False).still(Status.WAITING)
        if content_version is not None:
            rows = rows.filter(content_version=content_version)
        job = rows.annotate(now=Now()).lock().first()
        if job is None:
            seen = Job.objects.using(using).find(job_id)
            return seen.status if seen else None
        claim = Claim(job, using, job.now)  # type: ignore[attr-defined]
        tell([job_id], using)
        if job.deadline_at is not None and job.deadline_at <= claim.now:
            parked = class_of(JobParked)
            won = fail(claim, worker, Reason.PARKED, why, traceback, kind=EventKind.PARKED, error_class=parked)
            if won and failed is not None:
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
