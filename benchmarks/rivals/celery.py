"""Celery with Django as its own guide sets it up, and the same with the workers' connections kept.

``confirm_publish`` is on, because without it Celery loses messages without an error. Results are ignored, here and in
every other contender.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

from celery import Celery, shared_task

from benchmarks.rivals import Rival


def worker(processes: int) -> list[str]:
    """So many children, everything else by default. Mingle and gossip talk to whatever other workers share the broker;
    the name is new each time, because the broker may not have noticed yet that the last one's worker is gone."""
    return [
        *(sys.executable, "-m", "celery", "-A", "benchmarks.project.celery", "worker", "-l", "WARNING"),
        *("-c", str(processes), "--without-mingle", "--without-gossip", "-n", f"benchmark-{uuid.uuid4().hex[:8]}@%h"),
    ]


class BareCelery(Rival):
    """A message per job, sent after the commit; the fixup closes the database connection around every task."""

    distributions: ClassVar[tuple[str, ...]] = ("celery", "kombu", "amqp")
    messages = True

    def decorate(self, body: Callable[[int], None]) -> Any:
        return shared_task(body)

    def enqueue(self, number: int) -> None:
        from benchmarks.project.tasks import effect

        effect.delay_on_commit(number)

    @staticmethod
    def unconfirmed() -> None:
        """Publish without confirms: the harness counts the messages."""
        from benchmarks.project.celery import app

        app.conf.broker_transport_options = {}

    def fill(self, numbers: range) -> None:
        from benchmarks.project.tasks import effect

        self.unconfirmed()
        for number in numbers:
            effect.delay(number)

    def enqueue_many(self, numbers: range, priority: int) -> None:
        from benchmarks.project.tasks import effect

        for number in numbers:
            effect.apply_async((number,), priority=priority)

    def bulk(self, count: int) -> None:
        """Celery has no bulk call: a group sends its messages one by one as well."""
        from benchmarks.project.tasks import effect

        for number in range(count):
            effect.delay(number)

    def workers(self) -> list[list[str]]:
        return [worker(self.processes)]


class KeptCelery(BareCelery):
    """The same with connections kept: an undocumented setting of the Django fixup, which looks for it under this name.

    What Celery's overhead is without the reconnecting.
    """

    def app(self) -> Celery:
        app = super().app()
        app.conf["CELERY_DB_REUSE_MAX"] = 1_000_000_000
        return app


class KeptCeleryPriorities(KeptCelery):
    """The same with a queue that knows priorities."""

    settings: ClassVar[dict[str, Any]] = {"CELERY_TASK_QUEUE_MAX_PRIORITY": 9}
    queue_arguments: ClassVar[dict[str, Any]] = {"x-max-priority": 9}


class KeptCeleryAtomic(KeptCelery):
    """The same with ``transaction.atomic`` round the body: what a ReliableTask's body has, with no receipt at all."""

    def decorate(self, body: Callable[[int], None]) -> Any:
        from django.db import transaction

        return shared_task(transaction.atomic(body))


class KeptCeleryLate(KeptCelery):
    """The same with messages that are acknowledged after the task, and returned by a worker whose child was killed."""

    settings: ClassVar[dict[str, Any]] = {"CELERY_TASK_ACKS_LATE": True, "CELERY_TASK_REJECT_ON_WORKER_LOST": True}


class KeptCeleryResults(KeptCelery):
    """Connections kept, and results in django-celery-results."""

    apps: ClassVar[tuple[str, ...]] = ("django_celery_results",)
    settings: ClassVar[dict[str, Any]] = {"CELERY_TASK_IGNORE_RESULT": False, "CELERY_RESULT_BACKEND": "django-db"}
