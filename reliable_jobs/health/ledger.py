"""The jobs of one database: what waits too long, what nobody sweeps, what the pruner leaves."""

from __future__ import annotations

from collections.abc import Iterator

from reliable_jobs.conf import settings
from reliable_jobs.health.finding import Finding, Severity
from reliable_jobs.health.waiting import oldest_due, unswept_for
from reliable_jobs.models import Job
from reliable_jobs.sweep import pruner

#: Seconds that a due job may wait before the doctor mentions it.
LATE = 300.0
#: Days beyond its retention for which a row may stay: the pruner works in pieces.
PRUNED_WITHIN = 1.0
#: Rows that are counted at most.
COUNTED = 10_000


def findings(alias: str) -> Iterator[Finding]:
    """
    Raises:
        django.db.Error: the database can't be asked.
    """
    yield from _waiting(alias)
    yield from _kept(alias)


def _waiting(alias: str) -> Iterator[Finding]:
    area = f"jobs in {alias!r}"
    unfinished, oldest = Job.objects.using(alias).unfinished().count(), oldest_due(alias)
    since = "none is due" if oldest is None else f"the oldest has been due for {oldest:.0f} s"
    if oldest is not None and oldest > LATE:
        yield Finding(
            Severity.WARNING,
            area,
            f"{unfinished} unfinished, {since}.",
            "Look who consumes its queue (above), and start more workers, or find out what they are busy with: "
            "celery inspect active.",
        )
    else:
        yield Finding(Severity.INFO, area, f"{unfinished} unfinished, {since}.")
    unswept = unswept_for(alias)
    if unswept is not None:
        yield Finding(
            Severity.ERROR,
            "sweeper",
            f"A job in {alias!r} has been due for {unswept:.0f} s, and no sweeper has published it.",
            "Run one beat (celery -A … beat --scheduler django), or workers with "
            "RELIABLE_JOBS['WORKER_SWEEP_INTERVAL'] above 0, or manage.py reliable_jobs_sweep. If one runs, its log "
            "says what keeps it; a broker that is away does.",
        )


def _kept(alias: str) -> Iterator[Finding]:
    """Settled jobs that should have been pruned."""
    area, old, held = f"pruner in {alias!r}", 0, 0
    for status, days in settings.RETENTION.items():
        if days is not None:
            rows = pruner.settled(alias, status, days + PRUNED_WITHIN)
            held += rows.exclude(pk__in=pruner.deletable(alias).values("pk"))[:COUNTED].count()
            old += pruner.unprotected(alias, status, days + PRUNED_WITHIN)[:COUNTED].count()
    if old:
        more = " or more" if old >= COUNTED else ""
        yield Finding(
            Severity.WARNING,
            area,
            f"{old}{more} settled jobs are older than RELIABLE_JOBS['RETENTION'] by a day, and could be deleted.",
            "See that the periodic task reliable_jobs.prune is enabled and beat runs, or run manage.py "
            'reliable_jobs_prune. Where it logs "can\'t be pruned", rows of another table refer to them.',
        )
    if held:
        more = " or more" if held >= COUNTED else ""
        yield Finding(
            Severity.WARNING,
            area,
            f"{held}{more} settled jobs are older than RELIABLE_JOBS['RETENTION'] and kept, because a group still "
            "waits for their results or failed.",
            "Requeue the failed parts of such groups, or cancel the workflow: reliable_jobs_cancel --workflow ID.",
        )
    for name, on_delete, count in pruner.protected(alias):
        yield Finding(
            Severity.INFO,
            area,
            f"{count}{' or more' if count >= pruner.COUNTED else ''} settled jobs are kept, because {name} refers to "
            f"them with on_delete={on_delete}.",
        )
