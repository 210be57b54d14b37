"""What a commit does for the jobs of its transaction: it publishes their messages.

Every enqueue registers an ``on_commit`` hook of its own, because Django drops the hooks of a savepoint that rolls
back; one flag "registered already" would lose jobs with the savepoint that set it. The first hook that fires publishes
for all that are left in one pipeline: the list holds them weakly, and a dropped hook is gone from it. Should something
else keep a dropped hook alive, its message is published without a row and dropped by the worker.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import weakref
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connections, transaction

from reliable_jobs import databases
from reliable_jobs.dispatch import notify
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.message.row_to_message import Outgoing, Unsent, outgoing

logger = logging.getLogger("reliable_jobs.outbox")


def in_users_transaction(connection: Any) -> bool:
    # Django's TestCase holds one on every database; it is not the user's. Private: pinned by tests/test_outbox.py.
    return any(not getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def is_uncommitted(job_id: str) -> bool:
    """Whether this thread has enqueued the job in a transaction that is open now, so that nobody else sees it yet."""
    return any(
        in_users_transaction(connection) and any(job_id in hook.ids for hook in _pending.noted(connection.alias))
        for connection in connections.all(initialized_only=True)
    )


def commits_by_hand(alias: str) -> bool:
    """Whether the caller commits itself (``set_autocommit(False)``). Django runs no ``on_commit`` hook then; a sweeper
    publishes."""
    connection = connections[alias]
    managed = connection.in_atomic_block and connection.commit_on_exit
    return not managed and not connection.get_autocommit()


def dispatch_on_commit(app: Celery, alias: str, jobs: list[Unsent]) -> None:
    using = databases.principal(alias)
    hook = _DispatchOnCommit(app, alias, [outgoing(job, using) for job in jobs])
    transaction.on_commit(hook, using=alias)


def note(alias: str, ids: list[str]) -> None:
    if in_users_transaction(connections[alias]):
        transaction.on_commit(_Noted(alias, ids), using=alias)


def wake_on_commit(alias: str) -> None:
    transaction.on_commit(functools.partial(notify.nudge, alias), using=alias)


class _Pending(threading.local):
    """The hooks of this thread's open transactions, by alias, in the order of their enqueue."""

    def __init__(self) -> None:
        self._by_alias: dict[str, weakref.WeakValueDictionary[int, _DispatchOnCommit]] = {}
        self._noted: dict[str, weakref.WeakSet[_Noted]] = {}

    def of(self, alias: str) -> weakref.WeakValueDictionary[int, _DispatchOnCommit]:
        return self._by_alias.setdefault(alias, weakref.WeakValueDictionary())

    def noted(self, alias: str) -> weakref.WeakSet[_Noted]:
        return self._noted.setdefault(alias, weakref.WeakSet())


_pending = _Pending()


def pending(alias: str) -> weakref.WeakValueDictionary[int, _DispatchOnCommit]:
    """The hooks of this thread's open transaction that will publish, in the order of their enqueue."""
    return _pending.of(alias)


_order = itertools.count()


class _Noted:
    """An on_commit hook that knows which jobs its transaction enqueued; Django drops it when that ends."""

    def __init__(self, alias: str, ids: list[str]) -> None:
        self.ids = ids
        _pending.noted(alias).add(self)

    def __call__(self) -> None:
        """The jobs are committed."""


class _DispatchOnCommit(_Noted):
    """The on_commit hook of one enqueue. See the module's docstring for how they find each other."""

    def __init__(self, app: Celery, alias: str, messages: list[Outgoing]) -> None:
        super().__init__(alias, [str(message.id) for message in messages])
        self.app = app
        self.messages = messages
        self.dispatched = False
        self.pending = _pending.of(alias)
        self.pending[next(_order)] = self

    def __call__(self) -> None:
        if self.dispatched:
            return
        left = [hook for hook in self.pending.values() if hook.app is self.app and not hook.dispatched]
        for hook in left:
            hook.dispatched = True
        try:
            dispatch(self.app, [message for hook in left for message in hook.messages])
        except SoftTimeLimitExceeded:
            raise  # the task function's that commits here; the rows are safe
        except Exception:
            # A hook that raises would skip the hooks after it. The rows are safe: the sweeper looks at them.
            logger.exception("Dispatch on commit failed; the sweeper will publish %d job(s).", len(left))


def dispatch(app: Celery, messages: list[Outgoing]) -> None:
    """Publish within the request's budget. Nothing is written, whatever comes of it: the rows' grace covers a failure.

    A failure is logged once, by the breaker.
    """
    if not messages or publisher(app).breaker_open:
        return
    receipt = publisher(app).publish(messages)
    for job_id, why in receipt.returned.items():
        logger.warning("Job %s was not routed (%s); the sweeper tries again.", job_id, why)
