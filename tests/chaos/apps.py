from __future__ import annotations

from django.apps import AppConfig


class ChaosConfig(AppConfig):
    name = "tests.chaos"
    label = "chaos"

    def ready(self) -> None:
        from tests.celery_app import app
        from tests.chaos import instruments

        app.set_default()
        instruments.install()
