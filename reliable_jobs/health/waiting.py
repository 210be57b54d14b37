"""How long jobs have waited, by the database's clock. Each question is one query on an index."""

from __future__ import annotations

from reliable_jobs.clock import Now
from reliable_jobs.lifecycle.pauses import paused
from reliable_jobs.models import Job, JobQuerySet, Pause, PauseKind
from reliable_jobs.status import Status

#: Seconds that a due job may wait for a sweeper: with beat it is published within 2 s, without it within 30 s.
SWEPT_WITHIN = 60.0


def paused_queues(alias: str) -> set[str]:
    """Nothing is expected of them."""
    return {pause.name for pause in paused(alias, PauseKind.QUEUE)}


def oldest_due(alias: str) -> float | None:
    """Seconds since the oldest waiting job became due, published or not; None when none is due. Paused ones do not
    count."""
    return _age(Job.objects.using(alias).filter(status=Status.WAITING, due_at__lte=Now()))


def oldest_unpublished(alias: str) -> float | None:
    """Seconds since the oldest job became due of which no message is believed out; None when there is none."""
    return _age(Job.objects.using(alias).due())


def unswept_for(alias: str) -> float | None:
    """Seconds for which no sweeper has published what is due; None when none can be missed. What it has not done is the
    sign: a process may be there, and its sweep be stuck."""
    age = oldest_unpublished(alias)
    return age if age is not None and age > SWEPT_WITHIN else None


def _age(rows: JobQuerySet) -> float | None:
    pauses = Pause.objects.using(rows.db)
    for kind, field in ((PauseKind.QUEUE, "queue"), (PauseKind.TASK, "task")):
        rows = rows.exclude(**{f"{field}__in": pauses.filter(kind=kind).values("name")})
    row = rows.order_by("due_at").annotate(now=Now()).values("due_at", "now").first()
    if row is None or row["due_at"] is None:
        return None
    return max(0.0, round((row["now"] - row["due_at"]).total_seconds(), 3))
