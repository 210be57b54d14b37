from __future__ import annotations

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _


class ReliableJobsConfig(AppConfig):
    name = "reliable_jobs"
    verbose_name = _("Reliable jobs")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from reliable_jobs import checks, databases, lifecycle, results  # noqa: F401 - the checks register themselves
        from reliable_jobs.compat import celery_app, register
        from reliable_jobs.compat.celery import configured_app
        from reliable_jobs.schedule import create_periodic_tasks
        from reliable_jobs.task import builtins
        from reliable_jobs.telemetry import port, sentry
        from reliable_jobs.worker import bootstrap
        from reliable_jobs.workflow import capture  # noqa: F401 - it answers the app's methods from here on

        register.verify()
        bootstrap.connect()
        port.connect()
        sentry.connect()
        celery_app.when_complete = builtins.make_reliable
        lifecycle.listen(results.bring_in_line)
        if (app := configured_app()) is not None:
            celery_app.adopt(app)
            if app.finalized:  # else they come then
                builtins.make_reliable(app)
        post_migrate.connect(databases.forget, dispatch_uid="reliable_jobs.databases")
        post_migrate.connect(create_periodic_tasks, sender=self, dispatch_uid="reliable_jobs.periodic_tasks")
