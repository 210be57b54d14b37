from __future__ import annotations

from django.apps import AppConfig


class ChaosConfig(AppConfig):
    name = "qa.chaos"
    label = "chaos"

    def ready(self) -> None:
        from qa.chaos import instruments
        from tests.celery_app import app

        app.set_default()
        instruments.install()
