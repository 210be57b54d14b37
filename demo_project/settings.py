"""Settings of the demo shop.

Without further ado it runs on SQLite and a broker made of files. ``DATABASE_URL`` and ``BROKER_URL`` put it on real
servers, e.g. ``postgresql://user:password@localhost/shop`` and ``amqp://guest:guest@localhost//``.
"""

from __future__ import annotations

import os
from pathlib import Path

import dj_database_url

BASE_DIR = Path(__file__).resolve().parent.parent
#: Where everything is kept that is not on a server. ``manage.py demo`` takes a temporary one for each run.
DEMO_DIR = Path(os.environ.get("DEMO_DIR") or BASE_DIR / "var")
for _folder in ("queue", "fetched", "exchanges", "mail", "outside/refused"):
    (DEMO_DIR / _folder).mkdir(mode=0o700, parents=True, exist_ok=True)

SECRET_KEY = os.environ.get("SECRET_KEY", "for a demo on your own machine, and nothing else")
DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "demo_project.urls"
STATIC_URL = "/static/"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "django_celery_results",
    "reliable_jobs",
    "demo_project.shop",
    "demo_project.trial",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
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

# --- database -------------------------------------------------------------------------------------------------------

DATABASES = {"default": dj_database_url.parse(os.environ.get("DATABASE_URL") or f"sqlite:///{DEMO_DIR}/shop.sqlite3")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        # SQLite has one writer at a time. Without IMMEDIATE a transaction that reads first and writes later fails at
        # once when somebody else has written in between; with it, it waits at its beginning, up to the timeout (s).
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        # WAL lets readers go on beside the writer.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }

# --- Celery ---------------------------------------------------------------------------------------------------------

CELERY_BROKER_URL = os.environ.get("BROKER_URL") or "files://"
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("DEMO_QUEUE", "shop")
CELERY_RESULT_BACKEND = "django-db"
CELERY_RESULT_EXTENDED = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_TIME_LIMIT = 60
# The demo kills processes: one second after a child's death its message goes back, instead of ten.
CELERY_WORKER_LOST_WAIT = 1
if CELERY_BROKER_URL.startswith("files:"):
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(DEMO_DIR / "queue"),
        "data_folder_out": str(DEMO_DIR / "queue"),
        "control_folder": str(DEMO_DIR / "exchanges"),
        # Fetched files stay on the queue's own file system: only there is fetching one rename, which one worker wins.
        "store_processed": True,
        "processed_folder": str(DEMO_DIR / "fetched"),
        "polling_interval": 0.02,
    }
    # Remote control would be more files to poll.
    CELERY_WORKER_ENABLE_REMOTE_CONTROL = False

# Shorter than the defaults (15, 10 and 10 s), because in the demo something is lost or killed every few seconds and
# nobody wants to wait: a published job is first looked at after 3 s, a dead run is taken back after 4 s.
RELIABLE_JOBS = {"GRACE": 3, "LEASE": 4, "WORKER_SWEEP_INTERVAL": 3}

# --- the shop -------------------------------------------------------------------------------------------------------

EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = DEMO_DIR / "mail"
DEFAULT_FROM_EMAIL = "shop@example.com"

#: The payment provider is another company. Its log, and the shop's, lie outside the database: no rollback undoes them.
OUTSIDE_DIR = DEMO_DIR / "outside"
PAYMENT_SECONDS = 0.1
#: Of how many payments one is refused at first ("try again later").
PAYMENT_REFUSES_ONE_IN = 12

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"outside": {"format": "{process:d} {message}", "style": "{"}},
    "handlers": {
        "outside": {
            "class": "logging.FileHandler",
            "filename": OUTSIDE_DIR / "shop.log",
            "formatter": "outside",
            "delay": True,
        }
    },
    "loggers": {"shop": {"handlers": ["outside"], "level": "INFO", "propagate": False}},
}
