"""The Celery app and its tasks as a worker would see them, for checks and commands. Nothing here opens a connection."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from celery import Celery
from django.core.exceptions import ImproperlyConfigured

from reliable_jobs.conf import Settings, load


def load_tasks(app: Celery) -> None:
    """Import every task module, as a worker does at its start.

    Raises:
        Exception: whatever the import of a module of the project raises.
    """
    with _without_system_checks():
        app.loader.import_default_modules()
    app.finalize()


def reliable_tasks(app: Celery) -> list[Any]:
    """The registered reliable tasks, by name."""
    return [task for _, task in sorted(app.tasks.items()) if getattr(task, "writes_outbox", False)]


def our_settings() -> Settings | None:
    """RELIABLE_JOBS; None when it is invalid, which is a check of its own."""
    try:
        return load()
    except ImproperlyConfigured:
        return None


@contextlib.contextmanager
def _without_system_checks() -> Iterator[None]:
    """Celery runs Django's checks whenever it imports the task modules; within a check that would be a circle."""
    before = os.environ.get("CELERY_SKIP_CHECKS")
    os.environ["CELERY_SKIP_CHECKS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CELERY_SKIP_CHECKS"]
        else:
            os.environ["CELERY_SKIP_CHECKS"] = before
