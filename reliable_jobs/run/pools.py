"""What the running worker's pool can do: which time limits it enforces, and whether its database driver lets greenlets
take turns.

| pool              | time_limit (hard)           | soft_time_limit |
|-------------------|-----------------------------|-----------------|
| prefork           | yes, by SIGKILL             | yes             |
| gevent            | yes, where it yields        | no              |
| threads, solo     | no                          | no              |
| eventlet          | no                          | no              |
| a pool of others  | unknown, counts as no       | unknown         |
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from django.db import connections

from reliable_jobs.compat.celery_pool import is_pool
from reliable_jobs.compat.psycopg import waits_in_c

logger = logging.getLogger(__name__)

#: The pool's class in a worker; None in other processes. Children of a prefork pool inherit it.
running: type | None = None
#: Hard and soft limit of the tasks that have none, in seconds: of the settings, or of the worker's command line.
limits_of_worker: tuple[float | None, float | None] = (None, None)


class UnfitPool(SystemExit):
    """The worker can't run with this pool; the text says why, and what to change.

    It ends the process: Celery's signals swallow exceptions.
    """


def began(pool: type, limits: tuple[float | None, float | None] = (None, None)) -> None:
    """Remember the pool of this process, and its time limits. Call it before the pool forks.

    Raises:
        UnfitPool: its greenlets would wait for each other for ever.
    """
    global running, limits_of_worker
    running, limits_of_worker = pool, limits
    for problem in blocking_drivers(pool):
        raise UnfitPool(problem)


def limits_of(task: Any) -> tuple[float | None, float | None]:
    """Hard and soft time limit of a task's jobs here, in seconds; None for none. A call may have others."""
    hard, soft = limits_of_worker
    return task.time_limit or hard, task.soft_time_limit or soft


def enforces_hard_limit(pool: type | None = None) -> bool:
    """Whether a task's ``time_limit`` ends its run in the given pool, or in the running one."""
    return _is_pool(pool or running, "prefork", "gevent")


def enforces_soft_limit(pool: type | None = None) -> bool:
    """Whether ``soft_time_limit`` is raised in a task in the given pool, or in the running one."""
    return _is_pool(pool or running, "prefork")


def warn_of_limits(app: Any) -> None:
    """Log which tasks of a starting worker have limits that its pool does not enforce."""
    tasks = [task for task in app.tasks.values() if getattr(task, "writes_outbox", False)]
    for limit, names in without_limits(running, app, tasks).items():
        logger.warning(
            "This pool (%s) does not enforce %s; it has no effect on %s.",
            running.__module__.rpartition(".")[2] if running else "prefork",
            limit,
            ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
        )


def without_limits(pool: type | None, app: Any, tasks: Iterable[Any]) -> dict[str, list[str]]:
    """Names of the tasks that have a limit which the pool does not enforce, by the limit's name."""
    found: dict[str, list[str]] = {}
    for name, enforced in (("time_limit", enforces_hard_limit(pool)), ("soft_time_limit", enforces_soft_limit(pool))):
        limited = [task.name for task in tasks if getattr(task, name) or getattr(app.conf, f"task_{name}")]
        if limited and not enforced:
            found[name] = limited
    return found


def blocking_drivers(pool: type) -> Iterator[str]:
    """What is wrong with the database drivers in a greenlet pool: a statement that waits in C stops the whole process,
    the run that holds the lock included."""
    if not is_pool(pool, "gevent", "eventlet"):
        return
    name = "eventlet" if is_pool(pool, "eventlet") else "gevent"
    vendors = {connections[alias].vendor for alias in connections}
    if "postgresql" not in vendors:
        return
    in_c = waits_in_c()
    if in_c:
        yield (
            f"psycopg waits in C, so under {name} two runs that want the same row would hang this worker for good. Set "
            "the environment variable PSYCOPG_WAIT_FUNC=wait_selector (or PSYCOPG_IMPL=python) for the worker."
        )
    psycopg2 = sys.modules.get("psycopg2.extensions")
    if in_c is None and psycopg2 is not None and psycopg2.get_wait_callback() is None:
        yield (
            f"psycopg2 waits in C, so under {name} two runs that want the same row would hang this worker for good. "
            "Install psycogreen and call its patch_psycopg() before Django is set up, or use psycopg 3."
        )


def _is_pool(pool: type | None, *kinds: str) -> bool:
    """As :func:`is_pool`; prefork, Celery's default, where none runs."""
    return "prefork" in kinds if pool is None else is_pool(pool, *kinds)
