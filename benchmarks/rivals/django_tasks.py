"""Django's own tasks with the backend django-tasks-db: rows that ``db_worker`` processes poll for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from benchmarks.rivals import NotRun, Rival, django_command, in_chunks


class DjangoTasks(Rival):
    """Two ``db_worker`` processes. Its polling interval matters only when nothing is left to do."""

    distributions: ClassVar[tuple[str, ...]] = ("django-tasks-db",)
    apps: ClassVar[tuple[str, ...]] = ("django_tasks_db",)
    settings: ClassVar[dict[str, Any]] = {"TASKS": {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}}
    stored = "SELECT count(*) FROM django_tasks_db_dbtaskresult"

    def decorate(self, body: Callable[[int], None]) -> Any:
        try:
            from django.tasks import task
        except ImportError:
            raise NotRun("needs Django 6.0 or later") from None
        return task(body)

    def enqueue(self, number: int) -> None:
        from benchmarks.project.tasks import effect

        effect.enqueue(number)

    def fill(self, numbers: range) -> None:
        from django.db import transaction

        from benchmarks.project.tasks import effect

        for chunk in in_chunks(numbers):
            with transaction.atomic():
                for number in chunk:
                    effect.enqueue(number)

    def workers(self) -> list[list[str]]:
        return [django_command("db_worker", "--no-startup-delay", "--verbosity", "0")] * self.processes
