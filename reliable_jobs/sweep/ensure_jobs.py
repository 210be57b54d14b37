"""Rows of the application's own models that lack their job: declared as a queryset, enqueued by key."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from django.db import DatabaseError, router
from django.db.models import QuerySet

from reliable_jobs.message.row_to_message import as_key
from reliable_jobs.models import Job

logger = logging.getLogger(__name__)

_PAGE = 500


@dataclasses.dataclass
class Declared:
    """A queryset whose rows each want one job."""

    task: Any
    queryset: Callable[[], QuerySet[Any]]
    key: Callable[[Any], str | int | uuid.UUID]
    args: Callable[[Any], tuple[Any, ...]]
    every: float
    limit: int
    next_at: float = 0.0


_declared: list[Declared] = []


def ensure_jobs(
    task: Any,
    queryset: Callable[[], QuerySet[Any]],
    *,
    key: Callable[[Any], str | int | uuid.UUID] = lambda row: str(row.pk),
    args: Callable[[Any], tuple[Any, ...]] = lambda row: (row.pk,),
    every: float = 60.0,
    limit: int = 500,
) -> None:
    """Declare that every row of a queryset wants a job: the sweeper enqueues the missing ones by key.

    Call it in ``AppConfig.ready`` of a process that loads tasks.

    The key is taken for ever (until the job's row is pruned), so a job that failed is not started over by itself. Code
    that enqueues the same work by itself must use the same key, and ``key_forever=True``.

    Args:
        task: a ReliableTask.
        queryset: called at each look; the rows that lack their work.
        key: a row's idempotency key; by default its primary key.
        args: a row's task arguments.
        every: seconds between two looks of one process.
        limit: rows enqueued per look.

    Raises:
        TypeError: the task is not a reliable one.

    Example::

        ensure_jobs(send_verification, lambda: User.objects.filter(last_login=None), every=300)
    """
    if not getattr(task, "writes_outbox", False):
        raise TypeError(f"ensure_jobs() wants a ReliableTask, not {task!r}.")
    # The same declared twice does no harm: the second finds every job there.
    _declared.append(Declared(task, queryset, key, args, every, limit))


def sweep_declared(*, now: float | None = None) -> int:
    """Look at every declared queryset whose time has come. Returns how many jobs were enqueued."""
    now = time.monotonic() if now is None else now
    found = 0
    for declared in list(_declared):
        if declared.next_at > now:
            continue
        declared.next_at = now + declared.every
        try:
            found += _enqueue_missing(declared)
        except Exception:
            logger.exception("The declared queryset of %s could not be swept.", declared.task.name)
    return found


def _enqueue_missing(declared: Declared) -> int:
    alias = router.db_for_write(Job)
    # In pages: the rows at the front may all have their job already, for a failed one keeps its row in the queryset.
    rows = declared.queryset().iterator(chunk_size=_PAGE)
    found = 0
    while found < declared.limit and (page := list(itertools.islice(rows, _PAGE))):
        wanted: dict[Any, Any] = {as_key(declared.key(row)) or declared.key(row): row for row in page}
        taken = Job.objects.using(alias).filter(task=declared.task.name, live_key__in=[str(key) for key in wanted])
        for key in taken.values_list("live_key", flat=True):
            wanted.pop(str(key), None)
        for key, row in itertools.islice(wanted.items(), declared.limit - found):
            try:
                declared.task.apply_async(declared.args(row), key=key, key_forever=True)
            except DatabaseError:
                raise
            except Exception:  # one bad row must not keep the others from their jobs
                logger.exception("%s: no job for the row with key %r.", declared.task.name, key)
            else:
                found += 1
    return found
