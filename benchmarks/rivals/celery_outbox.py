"""django-celery-outbox: the app is an ``OutboxCelery``, ``delay`` writes a row, ``celery_outbox_relay`` publishes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from celery import Celery, shared_task

from benchmarks.rivals import Rival, django_command, in_chunks


class CeleryOutbox(Rival):
    """Everything by default; ``confirm_publish`` as its guide asks for."""

    distributions: ClassVar[tuple[str, ...]] = ("django-celery-outbox",)
    apps: ClassVar[tuple[str, ...]] = ("django_celery_outbox",)
    settings: ClassVar[dict[str, Any]] = {"CELERY_OUTBOX_APP": "benchmarks.project.celery.app"}
    stored = "SELECT count(*) FROM celery_outbox"

    def app(self) -> Celery:
        from django_celery_outbox import OutboxCelery

        return OutboxCelery("benchmark")

    def decorate(self, body: Callable[[int], None]) -> Any:
        return shared_task(body)

    def enqueue(self, number: int) -> None:
        from benchmarks.project.tasks import effect

        effect.delay(number)

    def fill(self, numbers: range) -> None:
        from django.db import transaction

        from benchmarks.project.tasks import effect

        for chunk in in_chunks(numbers):
            with transaction.atomic():
                for number in chunk:
                    effect.delay(number)

    def relays(self) -> list[list[str]]:
        return [django_command("celery_outbox_relay")]


class LargeBatches(CeleryOutbox):
    """The same relay told to take more at a time and to publish from several threads."""

    def relays(self) -> list[list[str]]:
        return [django_command("celery_outbox_relay", "--batch-size", "1000", "--publish-concurrency", "8")]
