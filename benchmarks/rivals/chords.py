"""A chord, and the same jobs as a group: ours, whose results are in the rows, and Celery's on Redis."""

from __future__ import annotations

import functools
import os
import socket
from typing import Any, ClassVar

from celery import chord, group

from benchmarks.rivals.celery import KeptCelery
from benchmarks.rivals.reliable import OnCommit

#: Imported by the workers too.
TASKS = {"CELERY_IMPORTS": ("benchmarks.project.chords",)}


def as_group(numbers: range) -> None:
    from benchmarks.project.chords import part

    group(part.s(number) for number in numbers).apply_async()


def as_chord(numbers: range) -> None:
    from benchmarks.project.chords import collect, part

    chord((part.s(number) for number in numbers), collect.s()).apply_async()


class Parts(OnCommit):
    """A group."""

    settings: ClassVar[dict[str, Any]] = {**OnCommit.settings, **TASKS}

    def fill(self, numbers: range) -> None:
        as_group(numbers)

    def publish(self) -> None:
        """What the commit has left to the sweeper, so that no sweep goes on while the workers are measured."""
        from benchmarks.project.celery import app
        from reliable_jobs.models import Job
        from reliable_jobs.sweep import sweeper

        while Job.objects.due().exists():
            sweeper.sweep(app)


class Chord(Parts):
    """The same jobs as the header of a chord."""

    def fill(self, numbers: range) -> None:
        as_chord(numbers)


class CeleryParts(KeptCelery):
    """A group whose results are kept on Redis."""

    distributions: ClassVar[tuple[str, ...]] = (*KeptCelery.distributions, "redis")
    settings: ClassVar[dict[str, Any]] = {
        **TASKS,
        "CELERY_TASK_IGNORE_RESULT": False,
        "CELERY_RESULT_BACKEND": f"redis://127.0.0.1:{os.environ.get('BENCHMARK_REDIS', '0')}/0",
    }

    @functools.cached_property
    def port(self) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return str(free.getsockname()[1])

    def environment(self, database_url: str) -> dict[str, str]:
        return {"BENCHMARK_REDIS": self.port}

    def servers(self) -> list[list[str]]:
        return [["redis-server", "--port", self.port, "--save", "", "--appendonly", "no"]]

    def fill(self, numbers: range) -> None:
        self.unconfirmed()
        as_group(numbers)


class CeleryChord(CeleryParts):
    """The same jobs as the header of a chord."""

    def fill(self, numbers: range) -> None:
        self.unconfirmed()
        as_chord(numbers)
