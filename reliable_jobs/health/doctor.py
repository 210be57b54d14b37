"""Everything that can be asked from outside, in order: configuration, broker, databases, jobs, processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from django.db import Error as DatabaseError
from django.db.models import Count

from reliable_jobs.checks.loading import our_settings
from reliable_jobs.clock import Now
from reliable_jobs.compat.celery import configured_app
from reliable_jobs.health import broker, configuration, databases, ledger, processes
from reliable_jobs.health.finding import Finding, Severity
from reliable_jobs.health.waiting import paused_queues
from reliable_jobs.models import Job
from reliable_jobs.status import Status


def examine(aliases: Sequence[str]) -> list[Finding]:
    """Look at the whole site. Takes seconds where the broker does not answer.

    Args:
        aliases: the databases that hold jobs.
    """
    if our_settings() is None:  # nothing else can be asked without them; a check says what is wrong
        return list(configuration.findings([]))
    found: list[Finding] = []
    waiting: dict[str, int] = {}
    reachable: list[str] = []
    of_databases: list[Finding] = []
    for alias in aliases:
        try:
            of_databases += [*databases.findings(alias), *ledger.findings(alias), *processes.findings(alias)]
            silent = paused_queues(alias)
            for queue, count in due_by_queue(alias):
                if queue not in silent:
                    waiting[queue] = waiting.get(queue, 0) + count
        except DatabaseError as error:
            of_databases.append(
                Finding(
                    Severity.ERROR,
                    f"database {alias!r}",
                    f"It can't be asked: {type(error).__name__}: {error}".strip(),
                    "Start it, correct DATABASES, or run manage.py migrate.",
                )
            )
        else:
            reachable.append(alias)
    found += configuration.findings(reachable)
    app = configured_app()
    if app is not None:
        found += broker.findings(app, waiting)
    return found + of_databases


def due_by_queue(alias: str) -> Iterator[tuple[str, int]]:
    """The jobs that wait and are due, counted by queue."""
    rows = Job.objects.using(alias).filter(status=Status.WAITING, due_at__lte=Now()).order_by()
    yield from rows.values("queue").annotate(count=Count("pk")).values_list("queue", "count")
