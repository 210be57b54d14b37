"""Django's settings for the contender that BENCHMARK_RIVAL names; the same for all but for what its file adds."""

from __future__ import annotations

import os

import dj_database_url

from benchmarks.rivals import current

SECRET_KEY = "benchmarks"
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "benchmarks.project.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
#: Kept, so that no contender reconnects unless something else makes it (Celery's fixup does).
DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"], conn_max_age=None, conn_health_checks=True)}
DATABASES["default"]["OPTIONS"] = current().database_options  # type: ignore[typeddict-unknown-key]

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    *current().apps,
    "benchmarks.project",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "/static/"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

CELERY_BROKER_URL = os.environ["BROKER_URL"]
CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True}
CELERY_TASK_DEFAULT_QUEUE = os.environ["BENCHMARK_QUEUE"]
CELERY_TASK_IGNORE_RESULT = True

if "reliable_jobs" in INSTALLED_APPS:  # for its pages in the benchmark "sweep"
    INSTALLED_APPS += ["django.contrib.admin", "django.contrib.messages", "django.contrib.sessions"]

globals().update(current().settings)
