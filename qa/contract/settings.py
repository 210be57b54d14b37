"""The Django project around Celery's tests: nothing but what reliable_jobs needs."""

from __future__ import annotations

import os

from tests.support.databases import by_hand

SECRET_KEY = "contract"
USE_TZ = True
DATABASES = {"default": by_hand(os.environ["CONTRACT_DATABASE_URL"])}
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
if os.environ["CONTRACT_RELIABLE"] == "1":  # an app that has reliable tasks answers for plain ones, too
    INSTALLED_APPS.append("reliable_jobs")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
#: There is no beat; the worker's own sweeper stands in, as often as a beat would.
RELIABLE_JOBS = {"WORKER_SWEEP_INTERVAL": 0.5}
