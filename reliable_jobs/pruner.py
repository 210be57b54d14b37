"""Deletes old settled rows, in batches, with the status repeated in the statement that deletes.

Django's cascading ``delete()`` collects ids first; a row requeued in between was deleted with the rest. Here the rows
are locked (skipping what others hold) by a query that says *settled*, and deleted in the same transaction.
"""

from __future__ import annotations

import logging

from django.db import transaction
from django.db.models.functions import Now

from reliable_jobs import databases
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import seconds
from reliable_jobs.models import Job, JobEvent

logger = logging.getLogger("reliable_jobs.pruner")

BATCH = 1000


def prune(*, limit: int = 100_000) -> int:
    """Delete settled jobs older than RETENTION, with their events. Returns how many jobs went.

    Args:
        limit: most jobs to delete per database in one call.

    Raises:
        Exception: of a database that could not be pruned, after the others have been.
    """
    total = 0

    def one(alias: str) -> None:
        nonlocal total
        here = 0
        for status, days in settings.RETENTION.items():
            while days is not None and here < limit:
                deleted = prune_batch(alias, status, days)
                here += deleted
                total += deleted
                if deleted < BATCH:
                    break

    try:
        databases.on_each(one, "The pruning")
    finally:
        if total:
            logger.info("Pruned %d settled job(s).", total)
    return total


def prune_batch(alias: str, status: str, days: float) -> int:
    """Delete one batch of one status. Raises ``django.db.Error``."""
    rows = Job.objects.using(alias).filter(status=status, finished_at__lt=Now() - seconds(days * 86400))
    with transaction.atomic(using=alias):
        ids = list(rows.lock().values_list("pk", flat=True)[:BATCH])
        deletable = Job.objects.using(alias).filter(pk__in=ids, status=status)
        deleted = deletable._raw_delete(
            alias
        )  # private, as is the only way round the cascade; see tests/test_pruner.py
        JobEvent.objects.using(alias).filter(job_id__in=ids)._raw_delete(alias)
    return int(deleted or 0)
