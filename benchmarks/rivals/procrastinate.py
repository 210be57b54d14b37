"""procrastinate by its Django integration: jobs are deferred on Django's own connection, inside its transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from benchmarks.rivals import Rival, django_command, in_chunks


class Procrastinate(Rival):
    """A synchronous task (the body is the ORM's), two worker processes with the default concurrency of 1 each.

    The workers keep Django's connections as CONN_MAX_AGE says. Jobs that are done stay, which is the default.
    """

    distributions: ClassVar[tuple[str, ...]] = ("procrastinate",)
    apps: ClassVar[tuple[str, ...]] = ("procrastinate.contrib.django",)
    stored = "SELECT count(*) FROM procrastinate_jobs"
    unfinished = f"{stored} WHERE status IN ('todo', 'doing')"

    def decorate(self, body: Callable[[int], None]) -> Any:
        from procrastinate.contrib.django import app

        return app.task(name="effect")(body)

    def enqueue(self, number: int) -> None:
        from benchmarks.project.tasks import effect

        effect.defer(number=number)

    def fill(self, numbers: range) -> None:
        from benchmarks.project.tasks import effect

        for chunk in in_chunks(numbers, 5000):
            effect.batch_defer(*({"number": number} for number in chunk))

    def enqueue_many(self, numbers: range, priority: int) -> None:
        from benchmarks.project.tasks import effect

        effect.configure(priority=priority).batch_defer(*({"number": number} for number in numbers))

    def bulk(self, count: int) -> None:
        from django.db import transaction

        from benchmarks.project.tasks import effect

        with transaction.atomic():
            effect.batch_defer(*({"number": number} for number in range(count)))

    def prune(self) -> None:
        import asyncio

        from procrastinate.contrib.django import app

        asyncio.run(app.job_manager.delete_old_jobs(nb_hours=0, include_failed=True))

    def workers(self) -> list[list[str]]:
        return [django_command("procrastinate", "worker", "--concurrency", "1")] * self.processes
