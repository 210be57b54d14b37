"""One row in the caller's transaction. Once that has committed, dispatch/on_commit.py publishes its message."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
import itertools
import uuid
from collections.abc import Iterable, Iterator

from celery import Celery
from django.db import connections

from reliable_jobs import databases, signals
from reliable_jobs.compat.django_transaction import in_transaction
from reliable_jobs.conf import settings
from reliable_jobs.dispatch import on_commit
from reliable_jobs.enqueue import insert, keys, owing
from reliable_jobs.enqueue.insert import Each, Request
from reliable_jobs.enqueue.template import Template
from reliable_jobs.errors import EnqueueError
from reliable_jobs.message.row_to_message import first_outgoing


def enqueue(app: Celery, request: Request, *, using: str | None = None, transactional: bool = True) -> uuid.UUID:
    """Write the job's row and see to its dispatch on commit. Returns the job's id: with a key, or a task id that is
    waiting already, that of the existing job.

    Raises:
        EnqueueError: with nothing written; most are AmbiguousTransaction, KeyConflict or KeyBusy.
        django.db.Error: the row can't be written; inside a transaction that one is then broken, as with any write.
    """
    alias, usual_name = databases.of_new_job(using)
    if transactional:
        return _write(app, request, alias, usual_name)
    return _outside_transaction(app, request, alias, usual_name)


def _write(app: Celery, request: Request, alias: str, usual_name: str) -> uuid.UUID:
    later = _is_for_later(request)
    immediate = not later and on_commit.publishes(app, alias, 1)
    rendered = request.rendered
    owes, place = (None, "") if rendered.debt is None else owing.of_new_row(app, rendered, rendered.debt, alias)
    new = insert.new_row(request, later=later, sends=1 if immediate else 0, owes=owes, place=place)
    version = 0
    if request.key is None and not request.id_given:
        insert.insert(alias, new)
    else:
        existing, version = keys.insert_unless_there(new, request, alias)
        if existing is not None:
            return existing
    if signals.heard(signals.job_enqueued):
        _tell(alias, request, [request.job_id])
    if immediate:
        relay_only = request.relay_only
        first = first_outgoing(request.job_id, rendered, usual_name, relay_only=relay_only, content_version=version)
        on_commit.dispatch_on_commit(app, alias, [first])
    else:
        wake = settings.DISPATCH == "relay" and not later
        on_commit.leave_to_sweeper(alias, [str(request.job_id)], wake=wake)
    return request.job_id


def enqueue_many(
    app: Celery, request: Request, template: Template, blocks: Iterable[Iterable[Each]], alias: str, usual_name: str
) -> list[str]:
    """Write many jobs that differ in their arguments only, in the open transaction; returns their ids, in order.

    As many as one commit can publish are published by it, more by the sweepers or relays.

    Args:
        request: what they have in common; its id is not used.
        blocks: as :func:`insert.insert_many` takes them.
        alias, usual_name: see :func:`databases.of_new_job`.

    Raises:
        django.db.Error: with nothing written.
    """
    rest = iter(blocks)
    head: list[Each] = []
    begun: Iterator[Each] = iter(())
    most = on_commit.MAX_ON_COMMIT
    while len(head) <= most and (block := next(rest, None)) is not None:
        begun = iter(block)
        head += itertools.islice(begun, most + 1 - len(head))
    later = _is_for_later(request)
    immediate = not later and on_commit.publishes(app, alias, len(head))
    common = insert.new_row(request, later=later, sends=1 if immediate else 0)
    if template.own_root:
        common = common._replace(root_id=None)
    ids: list[str] = []

    def noted(block: Iterable[Each]) -> Iterator[Each]:
        for job in block:
            ids.append(job.id)
            yield job

    insert.insert_many(alias, common, map(noted, itertools.chain([itertools.chain(head, begun)], rest)))
    if signals.heard(signals.job_enqueued):
        _tell(alias, request, map(uuid.UUID, tuple(ids)))  # the caller adds to them
    if not immediate:
        on_commit.leave_to_sweeper(alias, ids, wake=not later)
    elif head:
        messages = []
        for one in head:
            rendered = dataclasses.replace(request.rendered, payload=one.payload, envelope=one.envelope)
            messages.append(first_outgoing(uuid.UUID(one.id), rendered, usual_name))
        on_commit.dispatch_on_commit(app, alias, messages)
    return ids


def _tell(alias: str, request: Request, ids: Iterable[uuid.UUID]) -> None:
    about = {"task": request.rendered.task, "queue": request.rendered.queue}
    signals.send_after_commit(signals.job_enqueued, alias, ({"job_id": one, **about} for one in ids))


def _is_for_later(request: Request) -> bool:
    """Whether the job is not to start now."""
    if request.eta is not None:
        return request.eta > datetime.datetime.now(datetime.timezone.utc)
    return bool(request.countdown and request.countdown > 0)


def _outside_transaction(app: Celery, request: Request, alias: str, usual_name: str) -> uuid.UUID:
    """Write on a connection of its own, so that the job stays although the caller's transaction rolls back."""
    if on_commit.commits_by_hand(alias):
        raise EnqueueError(
            f"{request.rendered.task}: transactional=False is not possible while autocommit is off on database "
            f"{alias!r}. Commit first, or use transaction.atomic() instead of set_autocommit(False)."
        )
    if not in_transaction(connections[alias]):
        return _write(app, request, alias, usual_name)
    if connections[alias].vendor == "sqlite" and databases.in_users_transaction(connections[alias]):
        raise EnqueueError(
            f"{request.rendered.task}: transactional=False inside an open transaction needs a second writer, which "
            "SQLite does not have. Enqueue before the transaction, or after it."
        )

    def write() -> uuid.UUID:
        try:
            return _write(app, request, alias, usual_name)
        finally:
            connections[alias].close()

    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="reliable_jobs") as executor:
        return executor.submit(write).result()
