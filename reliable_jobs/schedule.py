"""The django-celery-beat rows of the sweeper and the pruner, made on migrate and edited in beat's own admin."""

from __future__ import annotations

import logging
from typing import Any

from django.apps import apps
from django.db import OperationalError, ProgrammingError, router, transaction

from reliable_jobs.compat.django import may_hold
from reliable_jobs.conf import settings

logger = logging.getLogger(__name__)

SWEEP_TASK = "reliable_jobs.sweep"
PRUNE_TASK = "reliable_jobs.prune"


def create_periodic_tasks(using: str = "default", **kwargs: Any) -> None:
    """Make the two rows where they are missing; what a person changed stays. A ``post_migrate`` receiver.

    Args:
        using: the database that was migrated. Nothing is done on another one than beat's own.
        kwargs: what the signal sends.
    """
    if not apps.is_installed("django_celery_beat"):
        return
    from django_celery_beat.models import PeriodicTask

    # Beat reads one database; on another its own unique check would also look into that one and fail the migration.
    if using != router.db_for_write(PeriodicTask) or not may_hold(using, PeriodicTask):
        return
    try:
        with transaction.atomic(using=using):
            _create(using)
    except (OperationalError, ProgrammingError) as error:
        # "migrate reliable_jobs" came first, and must not fail. The migration of beat's own tables comes back here.
        logger.warning("The sweeper's and the pruner's rows for beat could not be made (%s); migrate again.", error)


def _create(using: str) -> None:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    rows = (
        (SWEEP_TASK, settings.SWEEP_INTERVAL, IntervalSchedule.SECONDS, "Publishes due, lost and abandoned jobs."),
        (PRUNE_TASK, 10, IntervalSchedule.MINUTES, "Deletes settled jobs older than RELIABLE_JOBS['RETENTION']."),
    )
    for task, every, period, description in rows:
        if PeriodicTask.objects.using(using).filter(task=task).exists():
            continue
        interval = IntervalSchedule.objects.using(using).filter(every=every, period=period).first()
        if interval is None:
            interval = IntervalSchedule.objects.using(using).create(every=every, period=period)
        PeriodicTask.objects.using(using).get_or_create(
            name=task.replace(".", ": "), defaults={"task": task, "interval": interval, "description": description}
        )
