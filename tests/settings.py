"""The Django project of the test suite. DATABASE_URL and BROKER_URL choose the servers; else SQLite and memory."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile

from tests.support.databases import by_hand

if os.environ.get("TEST_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None  # type: ignore[assignment]  # Django takes psycopg2 then

SECRET_KEY = "tests"
DEBUG = False
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
ROOT_URLCONF = "tests.urls"
ALLOWED_HOSTS = ["*"]
STATIC_URL = "/static/"

_DEFAULT_DATABASE = f"sqlite:///{tempfile.gettempdir()}/reliable_jobs_tests_{os.getpid()}.sqlite3"
DATABASES = {"default": by_hand(os.environ.get("DATABASE_URL", _DEFAULT_DATABASE))}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
# A test's own entries, as JSON: OPTIONS, AUTOCOMMIT, CONN_MAX_AGE …
DATABASES["default"].update(json.loads(os.environ.get("TEST_DATABASE", "{}")))
if os.environ.get("TEST_DATABASE_NAME"):
    DATABASES["default"]["TEST"] = {"NAME": os.environ["TEST_DATABASE_NAME"]}
if os.environ.get("SECOND_DATABASE_URL"):
    DATABASES["second"] = by_hand(os.environ["SECOND_DATABASE_URL"])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    # Both are options of the package: a site, and an environment of tox.ini, may lack them.
    *(name for name in ("django_celery_beat", "django_celery_results") if importlib.util.find_spec(name)),
    "reliable_jobs",
    "tests.testapp",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
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
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CELERY_BROKER_URL = os.environ.get("BROKER_URL", "memory://")
CELERY_RESULT_BACKEND = "django-db" if "django_celery_results" in INSTALLED_APPS else None
if "TEST_RESULT_BACKEND" in os.environ:  # empty: none
    CELERY_RESULT_BACKEND = os.environ["TEST_RESULT_BACKEND"] or None
if "TEST_CACHE" in os.environ:
    CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": os.environ["TEST_CACHE"],
        }
    }
CELERY_RESULT_EXTENDED = True
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("TEST_QUEUE", "reliable_jobs_tests")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CHANNEL_ERROR_RETRY = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "Europe/Berlin"

RELIABLE_JOBS: dict[str, object] = {}
for _name in (
    "GRACE",
    "LEASE",
    "WORKER_SWEEP_INTERVAL",
    "HOLD",
    "PUBLISH_TIMEOUT",
    "DEPLOY_GRACE",
    "STALL_TIMEOUT",
    "PRESENCE_INTERVAL",
):
    if f"TEST_{_name}" in os.environ:
        RELIABLE_JOBS[_name] = float(os.environ[f"TEST_{_name}"])
for _name in ("RELEASE", "METRICS_LISTEN"):
    if f"TEST_{_name}" in os.environ:
        RELIABLE_JOBS[_name] = os.environ[f"TEST_{_name}"]
for _name in ("MAX_CRASHES", "MAX_INTERRUPTIONS", "MAX_CONFLICTS", "DELIVERY_BATCH"):
    if f"TEST_{_name}" in os.environ:
        RELIABLE_JOBS[_name] = int(os.environ[f"TEST_{_name}"])
