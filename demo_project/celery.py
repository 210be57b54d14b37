"""The shop's Celery app: ``celery -A demo_project worker``."""

from __future__ import annotations

import os

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo_project.settings")
TRANSPORT_ALIASES["files"] = "demo_project.file_broker:Transport"

app = Celery("demo_project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.autodiscover_tasks(related_name="chores")  # of the bad night that `make serve` shows
