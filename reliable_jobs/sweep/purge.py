"""Purge: a person drops jobs, chosen by queue, task, age and status. Those that wait are cancelled; settled ones are
deleted, with their history, before the pruner would."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Sequence

from reliable_jobs import lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.models import Job, JobQuerySet
from reliable_jobs.status import FINAL, Status
from reliable_jobs.sweep import pruner

#: What can be purged: not what runs.
STATUSES = (Status.WAITING, *FINAL, Status.SENT)
BATCH = 1000


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which jobs of one database. What is empty or None leaves nothing out."""

    using: str
    queues: Sequence[str] = ()
    tasks: Sequence[str] = ()
    #: Seconds, since a waiting job was enqueued, or a settled one ended.
    age: float | None = None
    status: str = Status.WAITING

    @property
    def rows(self) -> JobQuerySet:
        waits = self.status == Status.WAITING
        rows = Job.objects.using(self.using) if waits else pruner.deletable(self.using)
        rows = rows.filter(status=self.status)
        if self.queues:
            rows = rows.filter(queue__in=self.queues)
        if self.tasks:
            rows = rows.filter(task__in=self.tasks)
        if self.age is not None:
            since = "created_at" if waits else "finished_at"
            rows = rows.filter(**{f"{since}__lte": Now() - datetime.timedelta(seconds=self.age)})
        return rows


def purge(choice: Choice, *, actor: str) -> int:
    """Cancel or delete them, a thousand in each transaction. Running ones, and those that come in meanwhile, stay.

    Args:
        actor: who asks, for the history of cancelled ones.

    Returns:
        how many.

    Raises:
        django.db.Error: those before the failing thousand are gone.
    """
    now = Job.objects.using(choice.using).annotate(now=Now()).values_list("now", flat=True).first()
    if now is None:
        return 0
    rows = choice.rows.filter(created_at__lte=now)
    if choice.status == Status.WAITING:
        return _cancel(rows, choice.using, actor)
    total, kept, more = 0, set[uuid.UUID](), True
    while more:
        deleted, more = pruner.delete_batch(choice.using, rows, kept, BATCH)
        total += deleted
    return total


def _cancel(rows: JobQuerySet, using: str, actor: str) -> int:
    total = 0
    rows = rows.order_by("pk")
    ids = list(rows.values_list("pk", flat=True)[:BATCH])
    while ids:
        total += len(lifecycle.cancel(ids, using, actor=actor).done)
        ids = list(rows.filter(pk__gt=ids[-1]).values_list("pk", flat=True)[:BATCH])
    return total
