"""Whether beat sweeps."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Tags, Warning, register
from django.db import DatabaseError, connections, router

from reliable_jobs.checks.celery_settings import TAG
from reliable_jobs.checks.loading import our_settings
from reliable_jobs.compat.celery import configured_app
from reliable_jobs.compat.django import table_names
from reliable_jobs.models import Job
from reliable_jobs.schedule import PRUNE_TASK, SWEEP_TASK


@register(TAG)
def check_beat_installed(**kwargs: Any) -> list[CheckMessage]:
    app = configured_app()
    scheduled = (app.conf.beat_schedule or {}).values() if app is not None else ()
    if apps.is_installed("django_celery_beat") or any(entry.get("task") == SWEEP_TASK for entry in scheduled):
        return []
    ours = our_settings()
    fallback = float(ours.WORKER_SWEEP_INTERVAL) if ours else 1.0
    who = (
        f"only the workers sweep, every {fallback:g} s: delayed jobs and retries start late."
        if fallback
        else "nobody sweeps, as RELIABLE_JOBS['WORKER_SWEEP_INTERVAL'] is 0: delayed jobs, retries and jobs whose "
        "message was lost are never run."
    )
    return [
        Warning(
            f"Beat has no schedule for the sweeper; {who} Nor does it delete settled jobs.",
            hint="Install reliable-jobs[beat], add django_celery_beat to INSTALLED_APPS, migrate, and run one beat: "
            f"celery -A … beat --scheduler django. Without it: schedule the tasks {SWEEP_TASK} (every second) and "
            f"{PRUNE_TASK} (every 10 minutes) in CELERY_BEAT_SCHEDULE; or run manage.py reliable_jobs_sweep, and "
            "reliable_jobs_prune from time to time, and silence this check.",
            id="reliable_jobs.W012",
        )
    ]


@register(Tags.database)
def check_beat_row(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    if not apps.is_installed("django_celery_beat"):
        return []
    from django_celery_beat.models import PeriodicTask

    alias = router.db_for_read(PeriodicTask)
    if alias not in (databases or ()):
        return []
    try:
        tables = table_names(connections[alias])
        if PeriodicTask._meta.db_table not in tables or Job._meta.db_table not in tables:
            return []  # not migrated yet; the row is made afterwards
        rows = list(PeriodicTask.objects.using(alias).filter(task=SWEEP_TASK).values_list("enabled", flat=True))
    except DatabaseError:
        return []  # a database that can't be asked is not this check's business
    if any(rows):
        return []
    return [
        Warning(
            f"The periodic task {SWEEP_TASK} is {'disabled' if rows else 'missing'}: beat does not sweep, so delayed "
            "jobs, retries and jobs whose message was lost start late.",
            hint="Enable it in the admin under Periodic tasks."
            if rows
            else "Run manage.py migrate, which makes it where it is missing.",
            id="reliable_jobs.W013",
        )
    ]
