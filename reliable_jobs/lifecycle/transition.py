"""The conditional UPDATE behind the transitions of a single job, and the words that the folder shares.

Claims, successes and new rows are the same as SQL, in sql.py; requeue and cancel act on many, in operations.py.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import time
import uuid
from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.db.models import F

from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import announce
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.message.row_to_message import RowToSend
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import FINAL, TRANSITIONS, Status

ERROR_LIMIT = 10_000
TRACEBACK_LIMIT = 50_000


class Refusal(enum.Enum):
    """Why a delivery gets no claim. Most are copies (duplicates) of a message: run/delivery.py, ``_refused``."""

    MISSING = "no such row"
    FINAL = "settled already"
    LOCKED = "held, or taken meanwhile, by another session"
    NOT_DUE = "not due yet"
    STALE = "message of another content version"
    SUSPECT = "crashed before: needs a committed claim"
    CANCELLED = "its workflow was cancelled"
    QUEUE_PAUSED = "its queue is paused"
    TASK_PAUSED = "its task is paused"
    ALONE = "suspects run one at a time"


@dataclasses.dataclass
class Claim:
    """The right to run a job once, and what the row said when it was given."""

    job: Job
    using: str
    #: The database's time of the claim.
    now: datetime.datetime
    #: Set when the claim was committed; a first atomic run has the row lock instead.
    token: uuid.UUID | None = None
    #: Whether a committed claim has written ``started_at``: the job had never started before.
    first_start: bool = False
    #: What has been written to follow the job owes its group from now on, in its place.
    hands_on: bool = False
    #: By this process's clock (monotonic).
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        """Seconds since the first recorded start of the job."""
        return (self.now - (self.job.started_at or self.now)).total_seconds()

    @property
    def waited(self) -> float:
        """Seconds from the job's due time to the claim."""
        return (self.now - (self.job.due_at or self.now)).total_seconds()


@dataclasses.dataclass(frozen=True)
class Subject:
    """A job of which only these are known, as far as they are: enough for an event."""

    pk: uuid.UUID
    task: str = ""
    queue: str = ""


def succeeded_by(worker: str, claims: Sequence[Claim]) -> bool:
    """Whether a worker's settlement of these claims, which was one statement, was committed. Waits for their rows: a
    COMMIT may still be on its way on a connection that was lost."""
    using = claims[0].using
    wanted = {claim.job.pk: claim.job.epoch + 1 for claim in claims}
    rows = Job.objects.using(using).filter(pk__in=list(wanted), worker=worker).still(Status.SUCCEEDED)
    with transaction.atomic(using=using):
        return dict(rows.order_by("pk").lock(wait=True).values_list("pk", "epoch")) == wanted


def check_allowed(job: Job, status: str) -> None:
    if status not in TRANSITIONS[job.status]:
        raise ValueError(f"{job}: no transition from {job.status} to {status}")


def transition(job: Job, using: str, status: str, *, token_now: uuid.UUID | None = None, **changes: Any) -> bool:
    """Write a status if the row is still as the claim found it; says whether it was.

    The claims and successes have the same as SQL: see lifecycle/sql.py.

    Args:
        token_now: the token of a committed claim; without one the epoch is the fence.
        changes: values of other columns, by field name; times by the database's clock.
    """
    check_allowed(job, status)
    if status in FINAL:
        changes["finished_at"] = Now()
        if not job.key_forever:
            changes["live_key"] = None
    rows = Job.objects.using(using).filter(pk=job.pk)
    if token_now:
        rows = rows.filter(token=token_now).still(Status.RUNNING)
    else:
        rows = rows.filter(epoch=job.epoch).still(job.status)
    return rows.update(status=status, epoch=F("epoch") + 1, **changes) == 1


def record(
    job: Job | Subject, using: str, kind: str, actor: str, *texts: str, run: Claim | None = None, **more: Any
) -> None:
    """Write an event. It takes no lock on the job's row.

    Args:
        run: that ended with it.
        texts, more: see :func:`event`.
    """
    written = event(job, kind, actor, *texts, **more)
    written.save(using=using, force_insert=True)
    announce.of_events([written], using, run)


def event(
    job: Job | RowToSend | Subject,
    kind: str,
    actor: str,
    detail: str = "",
    traceback: str = "",
    *,
    final: bool | None = None,
    error_class: str = "",
    release: str | None = None,
    act_id: uuid.UUID | None = None,
) -> JobEvent:
    """An event that is to be written.

    Args:
        final: whether the job has ended with it, or only a run of it. None: neither.
        error_class: see :func:`db_errors.class_of`.
        release: of the run; this process's where none is given.
        act_id: the bulk act that it was a step of.
    """
    return JobEvent(
        job_id=job.pk,
        kind=kind,
        actor=clean(actor, 255)[:255],
        detail=clean(detail, ERROR_LIMIT),
        traceback=clean(traceback, TRACEBACK_LIMIT),
        task=clean(job.task, 255)[:255],
        queue=clean(job.queue, 255)[:255],
        error_class=error_class,
        release=settings.RELEASE if release is None else release,
        final=final,
        act_id=act_id,
    )
