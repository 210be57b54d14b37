"""System checks: each names one dangerous configuration, and its hint how to fix it.

``manage.py check`` runs them, every worker does at its start, and ``check --deploy`` adds those that only matter in
production. ``migrate`` and ``check --database default`` add those that must ask the database. Silence one by its id in
``SILENCED_SYSTEM_CHECKS``. The ids: E0xx errors, W00x to W01x Celery's settings, W02x databases, W03x single tasks,
W05x an app that is adopted as a whole.

Importing this package registers them.
"""

from __future__ import annotations

from reliable_jobs.checks import beat, celery_settings, databases, environment, tasks

__all__ = ["beat", "celery_settings", "databases", "environment", "tasks"]
