"""The Celery app, made by the contender."""

from __future__ import annotations

from benchmarks.rivals import current

app = current().app()
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
