from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
from django.db.models.signals import post_migrate


class ChaosConfig(AppConfig):
    name = "qa.chaos"
    label = "chaos"

    def ready(self) -> None:
        from qa.chaos import instruments, workflow_tasks  # noqa: F401 - the workers must know them
        from tests.celery_app import app

        app.set_default()
        instruments.install()
        post_migrate.connect(_run_times, sender=apps.get_app_config("reliable_jobs"))


def _run_times(using: str, **kwargs: Any) -> None:
    """What a site knows of its tasks after its first minutes: jobs of this one share messages from the start."""
    from django.utils import timezone

    from qa.chaos import tasks
    from reliable_jobs.models import Stat
    from reliable_jobs.models.statistics import HOUR
    from reliable_jobs.status import Ending

    counts = {"n": 100, "r4": 100}  # of up to 16 ms
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    known = {"task": tasks.shares.name, "queue": "", "release": "", "ending": Ending.SUCCEEDED, "span": HOUR}
    Stat.objects.using(using).get_or_create(at=hour, **known, defaults=counts)
