"""What the sites' settings have in common. Ports and limits come from the environment, as in a container."""

from __future__ import annotations

import json
import os
from typing import Any

SECRET_KEY = "chaos"
DEBUG = False
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_celery_beat",
    "django_celery_results",
    "reliable_jobs",
    "tests.testapp",
    "qa.chaos.apps.ChaosConfig",
]

DATABASE_NAME = os.environ.get("DATABASE_NAME", "chaos")
DATABASE_PORT = os.environ.get("DATABASE_PORT", "")
BROKER_PORT = os.environ.get("BROKER_PORT", "5672")

#: What a careful operator sets: without it a client waits for a dead server for hours.
POSTGRESQL_OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
POSTGRESQL: dict[str, Any] = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": DATABASE_NAME,
    "USER": "postgres",
    "HOST": "127.0.0.1",
    "PORT": DATABASE_PORT,
    "OPTIONS": POSTGRESQL_OPTIONS,
}

CELERY_BROKER_URL = f"amqp://guest:guest@127.0.0.1:{BROKER_PORT}//"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
CELERY_RESULT_BACKEND = "django-db"
CELERY_TASK_DEFAULT_QUEUE = "chaos"
CELERY_TIMEZONE = "Europe/Berlin"
#: Little in the workers' hands and more in the queue, where faults can lose, double and shuffle it.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1

RELIABLE_JOBS: dict[str, Any] = json.loads(os.environ.get("CHAOS_RELIABLE_JOBS", "{}"))
