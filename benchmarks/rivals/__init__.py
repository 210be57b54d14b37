"""One file per contender. A file says how the library is set up and which of its ways is used, following its own docs.

Whatever Django needs its apps loaded for is imported inside the methods, because the settings module imports the rival.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from celery import Celery

#: The one effect of every job, for those that do not go through Django's ORM (which sends the same statement).
INSERT = "INSERT INTO benchmark_effect (number) VALUES "


class NotRun(Exception):
    """This contender can't be measured here; the message says why, and is printed in place of a figure."""


class Rival:
    """One way of running jobs. This base has no queue at all: an order and nothing else."""

    #: PyPI distributions that it needs; their versions head the report.
    distributions: ClassVar[tuple[str, ...]] = ()
    #: Added to Django's settings.
    apps: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[dict[str, Any]] = {}
    #: OPTIONS of Django's database.
    database_options: ClassVar[dict[str, Any]] = {}
    #: Counts the jobs it has stored in the database; "" where it stores none.
    stored: ClassVar[str] = ""
    #: Counts those of them that have not ended.
    unfinished: ClassVar[str] = ""
    #: Its jobs are messages in the queue as soon as they are enqueued.
    messages: ClassVar[bool] = False
    #: Arguments with which it declares its queue.
    queue_arguments: ClassVar[dict[str, Any]] = {}
    #: How many work.
    processes: int = 2

    # --- how it is declared, in every process -------------------------------------------------------------------------

    def app(self) -> Celery:
        """The Celery app of the project."""
        from celery import Celery

        return Celery("benchmark")

    def decorate(self, body: Callable[[int], None]) -> Any:
        """Make a task of the body that all contenders with Django share."""
        return body

    # --- inside a process with Django set up --------------------------------------------------------------------------

    def install(self) -> None:
        """Create what ``migrate`` does not."""

    def enqueue(self, number: int) -> None:
        """Enqueue one job inside the caller's transaction, as a view would."""

    def fill(self, numbers: range) -> None:
        """Enqueue many as quickly as it goes. Never measured."""
        raise NotRun("it has no jobs")

    def enqueue_many(self, numbers: range, priority: int) -> None:
        """Enqueue and publish some at once, as a service would that has them together. The highest priority is 9."""
        raise NotRun("it has no priorities")

    def publish(self) -> None:
        """Publish what :meth:`fill` has left to others."""

    def bulk(self, count: int) -> None:
        """Enqueue ``count`` jobs by the fastest documented way; returns when they are committed."""
        raise NotRun("it has no bulk enqueue")

    def prune(self) -> None:
        """Delete what has been done, by its own means."""

    # --- in the harness's process -------------------------------------------------------------------------------------

    def environment(self, database_url: str) -> dict[str, str]:
        """Added to the environment of all its processes."""
        return {}

    def workers(self) -> list[list[str]]:
        """The command lines that work on the bodies, with as many processes as ``processes`` says."""
        raise NotRun("it has no workers")

    def servers(self) -> list[list[str]]:
        """The command lines of servers of its own, which go on while its workers are stopped."""
        return []

    def relays(self) -> list[list[str]]:
        """The command lines of further processes that must run beside the workers."""
        return []


Nothing = Rival


def in_chunks(numbers: range, size: int = 500) -> list[range]:
    return [numbers[at : at + size] for at in range(0, len(numbers), size)]


def django_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "django", *words]


def load(spec: str) -> Rival:
    """The rival of ``"module:Class"``.

    Raises:
        NotRun: it is not installed.
    """
    module, _, name = spec.partition(":")
    try:
        rival: Rival = getattr(importlib.import_module(f"benchmarks.rivals.{module}" if module else __name__), name)()
    except ImportError as error:
        raise NotRun(f"not installed ({error})") from error
    for distribution in rival.distributions:
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            raise NotRun(f"{distribution} is not installed") from None
    return rival


@functools.cache
def current() -> Rival:
    """The rival that this process was started for."""
    return load(os.environ["BENCHMARK_RIVAL"])
