"""Enqueue: one row in the caller's transaction; dispatch: its message once that transaction has committed.

Every enqueue registers an ``on_commit`` hook of its own, because Django drops the hooks of a savepoint that rolls
back; one flag "registered already" would lose jobs with the savepoint that set it. The first hook that fires publishes
for all that are left in one pipeline: the list holds them weakly, and a dropped hook is gone from it. Should something
else keep a dropped hook alive, its message is published without a row and dropped by the worker.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
import functools
import itertools
import logging
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings as django_settings
from django.db import connections, router, transaction

from reliable_jobs import databases, keys, rows, wake
from reliable_jobs.conf import settings
from reliable_jobs.errors import AmbiguousTransaction, EnqueueError
from reliable_jobs.keys import Request
from reliable_jobs.message import Outgoing, Unsent, outgoing
from reliable_jobs.models import Job
from reliable_jobs.publisher import publisher
from reliable_jobs.rows import Each
from reliable_jobs.statements import Moment
from reliable_jobs.template import Template

logger = logging.getLogger("reliable_jobs.outbox")

#: Jobs of one transaction that its commit publishes; the rest is born unsent and published by the sweeper.
MAX_ON_COMMIT = 1000


def enqueue(app: Celery, request: Request, *, using: str | None = None, transactional: bool = True) -> uuid.UUID:
    """Write the job's row and see to its dispatch on commit. Returns the job's id: with a key, or a task id that is
    waiting already, that of the existing job.

    Raises:
        AmbiguousTransaction, KeyConflict, KeyBusy, EnqueueError: with nothing written.
        django.db.Error: the row can't be written; inside a transaction that one is then broken, as with any write.
    """
    alias = using or write_alias()
    if transactional:
        return _write(app, request, alias)
    return _outside_transaction(app, request, alias)


def write_alias() -> str:
    """The database whose open transaction the job belongs to; the router's write alias where none is open.

    Raises:
        AmbiguousTransaction: transactions are open on two databases that both hold the jobs table.
    """
    default = router.db_for_write(Job)
    open_aliases = [
        connection.alias
        for connection in connections.all(initialized_only=True)
        if _in_users_transaction(connection) and router.allow_migrate_model(connection.alias, Job)
    ]
    if any(alias != default for alias in open_aliases):
        open_aliases = list(databases.distinct(sorted(open_aliases, key=lambda alias: alias != default)))
    if len(open_aliases) > 1:
        raise AmbiguousTransaction(
            f"Transactions are open on {' and '.join(sorted(open_aliases))}; a job can commit with only one of them. "
            "Say which: apply_async(..., using='…')."
        )
    return open_aliases[0] if open_aliases else default


def pointer_alias(pointer: Any) -> str:
    """The database that a message's pointer names; where it names none of ours, the one that a job would go to."""
    using = pointer.get("using") if isinstance(pointer, dict) else None
    return using if isinstance(using, str) and using in connections else write_alias()


def _in_users_transaction(connection: Any) -> bool:
    # Django's TestCase holds one on every database; it is not the user's. Private: pinned by tests/test_outbox.py.
    return any(not getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def _write(app: Celery, request: Request, alias: str) -> uuid.UUID:
    immediate = not request.later and _dispatches_now(app, alias)
    values = _values(request, sends=1 if immediate else 0)
    if request.key is None and not request.id_given:
        rows.insert(alias, values)
    else:
        existing = keys.insert_unless_there(values, request, alias)
        if existing is not None:
            return existing
    if immediate:
        _dispatch_on_commit(app, alias, [Unsent(request.job_id, request.rendered)])
        return request.job_id
    if settings.DISPATCH == "relay" and not request.later:
        _wake_on_commit(alias)
    _note(alias, [str(request.job_id)])
    return request.job_id


def enqueue_many(
    app: Celery, request: Request, template: Template, blocks: Iterable[Iterable[Each]], alias: str
) -> list[str]:
    """Write many jobs that differ in their arguments only, in the open transaction; returns their ids, in order.

    As many as one commit can publish are published by it, more by the sweepers or relays.

    Args:
        request: what they have in common; its id is not used.
        blocks: as :func:`rows.insert_many` takes them.

    Raises:
        django.db.Error: with nothing written.
    """
    rest = iter(blocks)
    head: list[Each] = []
    begun: Iterator[Each] = iter(())
    while len(head) <= MAX_ON_COMMIT and (block := next(rest, None)) is not None:
        begun = iter(block)
        head += itertools.islice(begun, MAX_ON_COMMIT + 1 - len(head))
    pending = sum(len(hook.messages) for hook in _pending.of(alias).values())
    immediate = pending + len(head) <= MAX_ON_COMMIT and not request.later and _dispatches_now(app, alias)
    common = _values(request, sends=1 if immediate else 0)
    for name in ("id", "body", "envelope"):
        del common[name]
    if template.own_root:
        del common["root_id"]
    ids: list[str] = []

    def noted(block: Iterable[Each]) -> Iterator[Each]:
        for job in block:
            ids.append(job.id)
            yield job

    rows.insert_many(alias, common, map(noted, itertools.chain([itertools.chain(head, begun)], rest)))
    if immediate and head:
        common_part = request.rendered
        _dispatch_on_commit(
            app,
            alias,
            [
                Unsent(uuid.UUID(one.id), dataclasses.replace(common_part, body=one.body, envelope=one.envelope))
                for one in head
            ],
        )
    else:
        if not request.later:
            _wake_on_commit(alias)
        _note(alias, ids)
    return ids


def is_uncommitted(job_id: str) -> bool:
    """Whether this thread has enqueued the job in a transaction that is open now, so that nobody else sees it yet."""
    return any(
        _in_users_transaction(connection) and any(job_id in hook.ids for hook in _pending.noted(connection.alias))
        for connection in connections.all(initialized_only=True)
    )


def _dispatch_on_commit(app: Celery, alias: str, jobs: list[Unsent]) -> None:
    using = databases.principal(alias)
    hook = _DispatchOnCommit(app, alias, [outgoing(job, using) for job in jobs])
    transaction.on_commit(hook, using=alias)


def _note(alias: str, ids: list[str]) -> None:
    if _in_users_transaction(connections[alias]):
        transaction.on_commit(_Noted(alias, ids), using=alias)


def _wake_on_commit(alias: str) -> None:
    transaction.on_commit(functools.partial(wake.nudge, alias), using=alias)


def _dispatches_now(app: Celery, alias: str) -> bool:
    """Whether the commit is to publish; if not, rows are born unsent and a sweeper does."""
    if settings.DISPATCH == "relay" or publisher(app).breaker_open:
        return False
    # What one request can't publish within its budget is better not begun: the sweeper takes it in windows.
    return len(_pending.of(alias)) < MAX_ON_COMMIT


def _seconds_until(moment: Any) -> Any:
    """Seconds from now until a time, by this machine's clock; anything else as it is."""
    if isinstance(moment, datetime.datetime):
        return (moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    return moment


def _values(request: Request, sends: int) -> dict[str, Any]:
    rendered = request.rendered
    due = Moment()
    eta, expires = request.eta, request.expires
    if not django_settings.USE_TZ:
        # The database's times are naive then, and in a zone that depends on the database: what lies between is not.
        eta, expires = None, _seconds_until(expires)
    if eta is not None:
        # Not before the eta by the database's clock, however fast this machine's runs.
        due = Moment(at=eta)
    elif request.later:
        due = Moment(delay=_seconds_until(request.eta) or request.countdown or 0.0)
    if isinstance(expires, (int, float)):
        expires_at: Any = Moment(delay=expires)
    else:
        expires_at = expires
    return {
        "id": request.job_id,
        "task": rendered.task,
        "queue": rendered.queue,
        "priority": rendered.priority,
        "due_at": due,
        "check_at": Moment(delay=settings.GRACE) if sends else None,
        "sends": sends,
        "expires_at": expires_at,
        "key": request.key,
        "live_key": request.key,
        "key_forever": request.key_forever or None,
        "body": rendered.body,
        "content_type": rendered.content_type,
        "content_encoding": rendered.content_encoding,
        "envelope": rendered.envelope,
        "root_id": rendered.root_id,
        "parent_id": rendered.parent_id,
    }


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


def _outside_transaction(app: Celery, request: Request, alias: str) -> uuid.UUID:
    """Write on a connection of its own, so that the job stays although the caller's transaction rolls back."""
    if not connections[alias].in_atomic_block:
        return _write(app, request, alias)
    if connections[alias].vendor == "sqlite" and _in_users_transaction(connections[alias]):
        raise EnqueueError(
            f"{request.rendered.task}: transactional=False inside an open transaction needs a second writer, which "
            "SQLite does not have. Enqueue before the transaction, or after it."
        )

    def write() -> uuid.UUID:
        try:
            return _write(app, request, alias)
        finally:
            connections[alias].close()

    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="reliable_jobs") as executor:
        return executor.submit(write).result()
