"""Database connections between the jobs of a worker.

Celery's Django fixup closes every connection before and after every task, whatever CONN_MAX_AGE says: most of a small
job's time goes into connecting. Around reliable tasks Django's own rules hold instead (``close_old_connections``), with
WORKER_CONN_MAX_AGE for databases whose CONN_MAX_AGE is 0, Django's default. Health checks are on, except for the
database that holds the job: its first statement is the claim, and one that fails because the connection has died costs
nothing and is tried again at once.

Plain tasks keep Celery's way. So do greenlet pools and pools that we don't know (a greenlet for every task would leave
a connection for every task), and databases with a pool of connections.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import signals
from django.db import close_old_connections, connections, transaction

from reliable_jobs import databases
from reliable_jobs.compat.celery_pool import close_cache, django_fixups, is_pool, pool_of, task_receivers
from reliable_jobs.compat.django import database_settings, driver_of, settings_of, start_anew, take_pools
from reliable_jobs.compat.django_transaction import in_transaction
from reliable_jobs.conf import settings

logger = logging.getLogger(__name__)

#: Whether this worker does it.
active = False


def keep_connections(worker: Any) -> bool:
    """Keep this worker's connections between reliable tasks. Says whether it could. Call it before the pool starts."""
    if not settings.WORKER_CONN_MAX_AGE or not is_pool(pool_of(worker), "prefork", "solo", "thread"):
        return False
    if any(configured.get("OPTIONS", {}).get("pool") for configured in database_settings().values()):
        return False  # the fixup closes what a forked child has inherited of its parent's pool
    fixups = list(django_fixups(worker.app))
    for celerys in fixups:
        prerun, postrun = task_receivers(celerys)
        signals.task_prerun.disconnect(prerun)
        signals.task_postrun.disconnect(postrun)
        ours = _Around(celerys)
        signals.task_prerun.connect(ours.task_prerun, weak=False)
        signals.task_postrun.connect(ours.task_postrun, weak=False)
    global active
    active = bool(fixups)
    if active:
        # A function may use any of them; the one that its claim has tried is not tried again: see run/delivery.py.
        databases.keep_connections()
    return active


#: In a child: its parent's pools. A pool that is deleted tries to stop its threads, which are not here.
_left_to_the_parent: list[Any] = []


def leave_pools_to_the_parent() -> None:
    """From now on, forget the connection pools of ``OPTIONS["pool"]`` in each child that this process forks.

    Celery's fixup closes them there, and with them the parent's sessions, which the sweeper uses.
    """
    os.register_at_fork(after_in_child=_forget_pools)


def _forget_pools() -> None:
    _left_to_the_parent.extend(take_pools())


class _Around:
    """What happens around a task instead of what the fixup does."""

    def __init__(self, celerys: Any) -> None:
        self.celerys = celerys
        self.prerun, self.postrun = task_receivers(celerys)

    def task_prerun(self, sender: Any, **kwargs: Any) -> None:
        if not getattr(sender, "keeps_connections", False):
            self.prerun(sender, **kwargs)

    def task_postrun(self, sender: Any, **kwargs: Any) -> None:
        if not getattr(sender, "keeps_connections", False):
            self.postrun(sender, **kwargs)
        elif not sender.request.is_eager and not sender.request.get("reliable_bundle"):  # that has a postrun of its own
            close_old_connections()
            close_cache(self.celerys)


# --- after a run ------------------------------------------------------------------------------------------------------


def reset_if_open(using: str, depth: int) -> bool:
    """Start with a new connection where a function left its transaction open: nothing would be committed on this one,
    and the next job of this process would be lost in it. Says whether there was such a transaction.

    Args:
        depth: atomic blocks that were open before the run; a test's own are not touched.
    """
    connection = connections[using]
    if depth:
        return False
    open_block = in_transaction(connection)
    if not open_block and driver_of(connection) is not None and settings_of(connection)["AUTOCOMMIT"]:
        if connection.vendor == "postgresql":
            # ACTIVE, INTRANS or INERROR, in libpq's numbers: a raw BEGIN.
            open_block = driver_of(connection).info.transaction_status in (1, 2, 3)
        if not open_block and transaction.get_autocommit(using):
            return False
    elif not open_block:
        return False
    start_anew(using)
    return bool(open_block)
