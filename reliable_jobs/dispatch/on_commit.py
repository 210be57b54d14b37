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
import uuid
import weakref

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connections, transaction

from reliable_jobs import databases, lifecycle
from reliable_jobs.compat.django import made_connections
from reliable_jobs.compat.django_transaction import commits_on_exit, in_transaction
from reliable_jobs.conf import settings
from reliable_jobs.dispatch import notify
from reliable_jobs.dispatch.answers import Confirms
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.lifecycle import workflows
from reliable_jobs.logs import fields
from reliable_jobs.message.row_to_message import Outgoing, as_uuid, foreign_id

logger = logging.getLogger(__name__)

#: Jobs of one transaction that its commit publishes; the rest is born unsent and published by the sweeper.
MAX_ON_COMMIT = 1000


def is_uncommitted(job_id: str) -> bool:
    """Whether this thread has enqueued the job in a transaction that is open now, so that nobody else sees it yet."""
    own = str(foreign_id(job_id))
    return any(
        databases.in_users_transaction(connection) and any(own in hook.ids for hook in _open.noted(connection.alias))
        for connection in made_connections()
    )


def commits_by_hand(alias: str) -> bool:
    """Whether the caller commits itself (``set_autocommit(False)``). Django runs no ``on_commit`` hook then; a sweeper
    publishes."""
    connection = connections[alias]
    managed = in_transaction(connection) and commits_on_exit(connection)
    return not managed and not connection.get_autocommit()


def publishes(app: Celery, alias: str, jobs: int) -> bool:
    """Whether the commit is to publish so many jobs more; if not, their rows are born unsent and a sweeper does."""
    if settings.DISPATCH == "relay" or commits_by_hand(alias):
        return False
    # What one request can't publish within its budget is better not begun: the sweeper takes it in windows.
    pending = len(_open.hooks(alias)) + sum(len(hook.messages) - 1 for hook in _open.of_many(alias))
    return pending + jobs <= MAX_ON_COMMIT and not publisher(app).breaker_open


def dispatch_on_commit(app: Celery, alias: str, messages: list[Outgoing]) -> None:
    """Publish the first messages of new rows when the open transaction commits; at once where none is open."""
    hook = _DispatchOnCommit(app, alias, messages)
    transaction.on_commit(hook, using=alias)


def leave_to_sweeper(alias: str, ids: list[str], *, wake: bool) -> None:
    """New rows that the commit does not publish.

    Args:
        wake: tell the relays after the commit.
    """
    if commits_by_hand(alias):
        return
    if wake:
        transaction.on_commit(functools.partial(notify.nudge, alias), using=alias)
    if databases.in_users_transaction(connections[alias]):
        transaction.on_commit(_Noted(alias, ids), using=alias)


class _Open(threading.local):
    """The hooks of this thread's open transactions, by alias, in the order of their enqueue."""

    def __init__(self) -> None:
        self._by_alias: dict[str, weakref.WeakValueDictionary[int, _DispatchOnCommit]] = {}
        self._of_many: dict[str, weakref.WeakSet[_DispatchOnCommit]] = {}
        self._noted: dict[str, weakref.WeakSet[_Noted]] = {}

    def hooks(self, alias: str) -> weakref.WeakValueDictionary[int, _DispatchOnCommit]:
        return self._by_alias.setdefault(alias, weakref.WeakValueDictionary())

    def of_many(self, alias: str) -> weakref.WeakSet[_DispatchOnCommit]:
        """Those of them that hold several messages: few, so that each call can count what is pending."""
        return self._of_many.setdefault(alias, weakref.WeakSet())

    def noted(self, alias: str) -> weakref.WeakSet[_Noted]:
        return self._noted.setdefault(alias, weakref.WeakSet())


_open = _Open()
_order = itertools.count()


class _Noted:
    """An on_commit hook that knows which jobs its transaction enqueued; Django drops it when that ends."""

    def __init__(self, alias: str, ids: list[str]) -> None:
        self.ids = ids
        _open.noted(alias).add(self)

    def __call__(self) -> None:
        """The jobs are committed."""


class _DispatchOnCommit(_Noted):
    """The on_commit hook of one enqueue. See the module's docstring for how they find each other."""

    def __init__(self, app: Celery, alias: str, messages: list[Outgoing]) -> None:
        super().__init__(alias, [str(message.id) for message in messages])
        self.app = app
        self.messages = messages
        self.dispatched = False
        self.pending = _open.hooks(alias)
        self.pending[next(_order)] = self
        if len(messages) > 1:
            _open.of_many(alias).add(self)

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
    But rows whose task is not a reliable one end here, with the broker's confirm.

    A failure is logged once, by the breaker.
    """
    relayed = [message for message in messages if message.relayed_from]
    if not messages or (broker := publisher(app)).breaker_open:
        return
    confirms = broker.publish(wanted(messages, relayed) if relayed else messages)
    sent = {message.id: message for message in messages} if confirms.returned else {}
    for job_id, why in confirms.returned.items():
        about = fields(job_id, sent[job_id].headers["task"], sent[job_id].queue)
        logger.warning("Job %s was not routed (%s); the sweeper tries again.", job_id, why, extra=about)
    if relayed:
        mark_sent(relayed, confirms)


def wanted(messages: list[Outgoing], relayed: list[Outgoing]) -> list[Outgoing]:
    """The messages without those of tasks that are not reliable whose workflows were cancelled after their rows were
    made. No claim would stop them; the sweep ends their rows.

    Args:
        relayed: those of tasks that are not reliable.
    """
    by_alias: dict[str, set[str]] = {}
    for message in relayed:
        if message.headers["root_id"] != message.headers["id"]:
            by_alias.setdefault(message.relayed_from, set()).add(message.headers["root_id"])
    cancelled = {
        (alias, root)
        for alias, roots in by_alias.items()
        for root in workflows.cancelled_among(list(filter(None, map(as_uuid, roots))), alias)
    }
    if not cancelled:
        return messages
    return [message for message in messages if (message.relayed_from, message.headers["root_id"]) not in cancelled]


def mark_sent(relayed: list[Outgoing], confirms: Confirms) -> None:
    """Write the confirms of messages whose rows end with it."""
    by_alias: dict[str, list[uuid.UUID]] = {}
    for message in relayed:
        if message.id in confirms.confirmed:
            by_alias.setdefault(message.relayed_from, []).append(message.id)
    for alias, ids in by_alias.items():
        lifecycle.mark_sent(ids, alias)
