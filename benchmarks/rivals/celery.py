"""Celery with Django as its own guide sets it up, and the same with the workers' connections kept.

``confirm_publish`` is on, because without it Celery loses messages without an error. Results are ignored, here and in
every other contender.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

from celery import Celery, shared_task

from benchmarks.rivals import Rival

#: Two children, everything else by default. Mingle and gossip talk to whatever other workers share the broker.
WORKER = (
    *(sys.executable, "-m", "celery", "-A", "benchmarks.project.celery", "worker", "-c", "2", "-l", "WARNING"),
    *("--without-mingle", "--without-gossip", "-n", "benchmark@%h"),
)


class BareCelery(Rival):
    """A message per job, sent after the commit; the fixup closes the database connection around every task."""

    distributions: ClassVar[tuple[str, ...]] = ("celery", "kombu", "amqp")
    messages = True

    def decorate(self, body: Callable[[int], None]) -> Any:
        return shared_task(body)

    def enqueue(self, number: int) -> None:
        from benchmarks.project.tasks import effect

        effect.delay_on_commit(number)

    def fill(self, numbers: range) -> None:
        from benchmarks.project.celery import app
        from benchmarks.project.tasks import effect

        app.conf.broker_transport_options = {}  # no confirms: the harness counts the messages
        for number in numbers:
            effect.delay(number)

    def bulk(self, count: int) -> None:
        """Celery has no bulk call: a group sends its messages one by one as well."""
        from benchmarks.project.tasks import effect

        for number in range(count):
            effect.delay(number)

    def workers(self) -> list[list[str]]:
        return [list(WORKER)]


class KeptCelery(BareCelery):
    """The same with connections kept: an undocumented setting of the Django fixup, which looks for it under this name.

    What Celery's overhead is without the reconnecting.
    """

    def app(self) -> Celery:
        app = super().app()
        app.conf["CELERY_DB_REUSE_MAX"] = 1_000_000_000
        return app
