from __future__ import annotations

from django.apps import AppConfig


class ChaosConfig(AppConfig):
    name = "qa.chaos"
    label = "chaos"

    def ready(self) -> None:
        from qa.chaos import instruments, workflow_tasks  # noqa: F401 - the workers must know them
        from tests.celery_app import app

        app.set_default()
        instruments.install()
