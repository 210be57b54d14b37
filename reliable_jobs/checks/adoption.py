"""An app that is adopted as a whole, or whose calls are: what is left out of it, and what should be."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from celery import Celery
from django.conf import settings
from django.core.checks import CheckMessage, Warning
from kombu.utils.imports import symbol_by_name

from reliable_jobs.checks.loading import our_settings
from reliable_jobs.message.row_to_message import PICKLE
from reliable_jobs.task.adopted_task import CELERYS, Adoption
from reliable_jobs.task.reliable_task import ReliableTask
from reliable_jobs.worker.requests import ReliableRequest
from reliable_jobs.workflow.capture import INTERNAL


def check_adoption(app: Celery) -> Iterator[CheckMessage]:
    """The messages of :mod:`reliable_jobs.checks.tasks` on app-wide adoption. The tasks are loaded."""
    yield from _atomic_app(app)
    yield from _outbox(app)
    patterns = tuple(ours.PLAIN_TASKS) if (ours := our_settings()) else ()
    names = list(app.tasks)
    unused = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
    if unused:
        yield Warning(
            f"RELIABLE_JOBS['PLAIN_TASKS'] names what no task is called: {_list(unused)}.",
            hint="Write the task's name as the worker lists it at its start, with * for any text.",
            id="reliable_jobs.W050",
        )
    pickled = [
        name
        for name, task in app.tasks.items()
        if isinstance(type(task), Adoption)
        and not getattr(task, "writes_outbox", False)
        and task.serializer in PICKLE
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in (CELERYS, *patterns))
    ]
    if pickled:
        yield Warning(
            "These tasks stay plain Celery tasks, without a row and without its promises, because their serializer is "
            f"pickle: {_list(pickled)}.",
            hint="Name them in RELIABLE_JOBS['PLAIN_TASKS'] if that is right. A task of your own: remove its "
            "serializer; JSON is the default.",
            id="reliable_jobs.W051",
        )


def _outbox(app: Celery) -> Iterator[CheckMessage]:
    """The messages on ``OUTBOX_TASKS``."""
    patterns = tuple(ours.OUTBOX_TASKS) if (ours := our_settings()) else ()
    if not patterns:
        return
    internal = [one for one in patterns if any(fnmatch.fnmatchcase(one, pattern) for pattern in INTERNAL)]
    if internal:
        yield Warning(
            f"RELIABLE_JOBS['OUTBOX_TASKS'] names tasks whose calls never become rows: {_list(internal)}.",
            hint="Remove them. Celery's own messages and those of the sweeper go their own way.",
            id="reliable_jobs.W054",
        )
    if str(app.conf.result_backend or "").startswith("rpc"):
        yield Warning(
            "RELIABLE_JOBS['OUTBOX_TASKS'] is set and the result backend is rpc://: a call that becomes a row "
            "declares no reply queue, so the result of a task that is not reliable may come before anybody reads it, "
            "and is lost.",
            hint="Use another result backend; or make the tasks reliable whose results are read.",
            id="reliable_jobs.W055",
        )
    atomic = [alias for alias, options in settings.DATABASES.items() if options.get("ATOMIC_REQUESTS")]
    if atomic and any(not pattern.strip("*?") for pattern in patterns):
        yield Warning(
            "RELIABLE_JOBS['OUTBOX_TASKS'] means every task, and ATOMIC_REQUESTS is on for "
            f"{_list(atomic)}: what a request has called is undone when it fails, also the task that was to report "
            "the failure.",
            hint="Name the tasks or packages instead, and leave out those that report failures.",
            id="reliable_jobs.W056",
        )


def _atomic_app(app: Celery) -> Iterator[CheckMessage]:
    base = app.Task
    if issubclass(base, ReliableTask) and base.atomic:
        yield Warning(
            f"task_cls is {base.__mro__[1].__qualname__}, so every task of the app runs in one transaction, those of "
            "installed packages and Celery's own too. One that removes a file or starts a process can lose data there.",
            hint='Use task_cls="reliable_jobs:AdoptedTask" (or derive your class from AdoptedTask), and set '
            "atomic=True on single tasks.",
            id="reliable_jobs.W052",
        )


def foreign_requests(tasks: list[Any]) -> Iterator[CheckMessage]:
    """Tasks with a request class that does not know our endings."""
    names = [task.name for task in tasks if not issubclass(symbol_by_name(task.Request), ReliableRequest)]
    if names:
        yield Warning(
            "The task's Request class is not derived from ReliableRequest, so a worker child that dies is recorded "
            f"late, and hard time limits and revocations as Celery sees them: {_list(names)}.",
            hint="Derive it from reliable_jobs.worker.requests.ReliableRequest.",
            id="reliable_jobs.W053",
        )


def _list(names: list[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
