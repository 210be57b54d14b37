"""Idempotent enqueue: the same key, or the same task id, is the same job."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

from django.db import OperationalError, connections, transaction

from reliable_jobs import lifecycle
from reliable_jobs.enqueue import insert
from reliable_jobs.enqueue.insert import Request
from reliable_jobs.errors import KeyBusy, KeyConflict
from reliable_jobs.message.decode import same_call
from reliable_jobs.models import Job

#: How long an enqueue waits for another open transaction that holds the same key.
KEY_LOCK_TIMEOUT_MS = 2000
_KEY_ROUNDS = 3


def insert_unless_there(new: insert.New, request: Request, alias: str) -> tuple[uuid.UUID | None, int]:
    """Insert; or return the id of the job that has the key or the task id already. With it, the content version of what
    was written: a row that keeps the place of a workflow's step is written over."""
    task, jobs = request.rendered.task, Job.objects.using(alias)
    holders = jobs.filter(task=task, live_key=request.key) if request.key is not None else jobs.none()
    if request.key is None:
        if insert.insert(alias, new, unless_there=True):
            return None, 0  # by far most of them: ids that Celery's canvas has chosen
        anew = request.relay_only and not request.follows
        version = lifecycle.take_over(request.job_id, alias, new.columns, anew=anew)
        if version:
            return None, version
    for _ in range(_KEY_ROUNDS):
        found = holders.first() or (jobs.filter(pk=request.job_id).first() if request.id_given else None)
        if found is not None and request.follows and request.key is None:
            _expect_same_workflow(found, request)
            return found.pk, 0
        if found is not None:
            return _same_or_conflict(found, request), 0
        with transaction.atomic(using=alias), bounded_wait(alias, task, request.key):
            inserted = insert.insert(alias, new, unless_there=True)
        if inserted:
            return None, 0
    raise KeyBusy(
        f"{task}: key {request.key!r} changed hands {_KEY_ROUNDS} times while it was being enqueued; try again."
    )


def _expect_same_workflow(found: Job, request: Request) -> None:
    """A step that has been started before, by a job that was requeued since, is not started again. One of another
    workflow is no step of this one, which would wait for it for ever.

    Raises:
        KeyConflict: a signature that has an id (``freeze()``) was called in two workflows.
    """
    root = request.rendered.root_id
    if None not in (root, found.root_id) and root != found.root_id:
        raise KeyConflict(
            f"{request.rendered.task}: task id {found.pk} belongs to a job of another workflow already "
            f"({found.status}). A frozen signature can be called once; clone it before it is frozen."
        )


def _same_or_conflict(found: Job, request: Request) -> uuid.UUID:
    what = f"key {request.key!r}" if request.key is not None else f"task id {request.job_id}"
    if request.key is not None and found.live_key != request.key:
        raise KeyConflict(
            f"{request.rendered.task}: task id {found.pk} belongs to a job without {what} already. Leave task_id out; "
            "the key alone says which job is meant."
        )
    if not same_call(found, request.rendered):
        raise KeyConflict(
            f"{request.rendered.task}: {what} already belongs to job {found.pk} ({found.task}, {found.status}) with "
            "other arguments. The same key must always mean the same job; put what differs into the key."
        )
    if request.key is None and found.is_final:
        raise KeyConflict(
            f"{request.rendered.task}: task id {found.pk} belongs to a job that has {found.status} already. "
            "Leave task_id out, or requeue that job."
        )
    return found.pk


@contextlib.contextmanager
def bounded_wait(alias: str, task: str, key: str | None) -> Iterator[None]:
    """ON CONFLICT waits for another transaction that has inserted the key and is still open: not for ever."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('lock_timeout'), set_config('lock_timeout', %s, true)", [str(KEY_LOCK_TIMEOUT_MS)]
        )
        before = cursor.fetchone()[0]
        try:
            yield
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", None) != "55P03":
                raise
            raise KeyBusy(
                f"{task}: another open transaction has just used key {key!r} and has not ended after "
                f"{KEY_LOCK_TIMEOUT_MS} ms. Enqueue keyed jobs late in the transaction, in one order."
            ) from error
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [before])
