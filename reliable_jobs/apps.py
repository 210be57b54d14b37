from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class ReliableJobsConfig(AppConfig):
    name = "reliable_jobs"
    verbose_name = "Reliable jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from reliable_jobs import checks, databases  # noqa: F401 - importing the checks registers them
        from reliable_jobs.compat import register
        from reliable_jobs.schedule import create_periodic_tasks
        from reliable_jobs.worker import bootstrap

        register.verify()
        bootstrap.connect()
        post_migrate.connect(databases.forget, dispatch_uid="reliable_jobs.databases")
        post_migrate.connect(create_periodic_tasks, sender=self, dispatch_uid="reliable_jobs.periodic_tasks")
