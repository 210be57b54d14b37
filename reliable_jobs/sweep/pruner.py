"""Deletes old settled rows, in batches.

Django's cascading ``delete()`` collects ids first; a row requeued in between was deleted with the rest. Here one query
locks rows that are settled and old, skipping those that others hold, and the same transaction deletes them by id.
"""

from __future__ import annotations

import datetime
import logging
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from django.db import IntegrityError, connections, transaction
from django.db.models import DO_NOTHING, PROTECT, RESTRICT, Exists, ManyToOneRel, OuterRef

from reliable_jobs import databases
from reliable_jobs.clock import Now
from reliable_jobs.compat.django import delete_alone, locks_no_keys, may_hold, skips_locked
from reliable_jobs.conf import settings
from reliable_jobs.models import (
    CancelledWorkflow,
    Job,
    JobEvent,
    JobGroup,
    JobQuerySet,
    JobState,
    Process,
    ProcessSeen,
    SavedGroup,
)
from reliable_jobs.status import GroupState, Status
from reliable_jobs.sweep import statistics

logger = logging.getLogger(__name__)

#: Jobs that one transaction deletes.
BATCH = 1000
#: Days for which the rows of messages that were only passed on are kept.
SENT_DAYS = 1.0
#: Days for which a process is kept that is no longer seen.
PROCESS_DAYS = 1.0
#: Protected jobs that the log counts.
COUNTED = 10_000
#: Jobs that such a row refers to are not deleted.
_KEEPING = (PROTECT, RESTRICT, DO_NOTHING)


def prune(*, limit: int = 100_000) -> int:
    """Delete settled jobs older than RETENTION, with their events. Returns how many jobs went.

    Rows of the application's own models that refer to a job are treated as their ``on_delete`` says; jobs that it
    protects are kept, and the log says how many.

    Args:
        limit: most jobs to delete per database in one call.

    Raises:
        Exception: of a database that could not be pruned, after the others have been.
    """
    total = 0

    def one(alias: str) -> None:
        nonlocal total
        here = 0
        if statistics.counted_until(alias) is not None:
            statistics.roll(alias)  # where no sweep comes by, nothing could be pruned
        for status, days in {**settings.RETENTION, Status.SENT: SENT_DAYS}.items():
            if days is None:
                continue
            kept: set[uuid.UUID] = set()
            more = True
            while more and here < limit:
                deleted, more = prune_batch(alias, status, days, kept, min(BATCH, limit - here))
                here += deleted
                total += deleted
            if kept:
                logger.warning("%d settled job(s) can't be pruned: rows of another table refer to them.", len(kept))
        prune_groups(alias)
        _prune_saved_groups(alias)
        _prune_cancelled_workflows(alias)
        _prune_processes(alias)
        statistics.prune(alias)
        _say_what_is_protected(alias)

    try:
        databases.on_each(one, "The pruning")
    finally:
        if total:
            logger.info("Pruned %d settled job(s).", total)
    return total


def prune_batch(alias: str, status: str, days: float, kept: set[uuid.UUID], size: int) -> tuple[int, bool]:
    """Delete one batch of one status.

    Args:
        kept: jobs that could not be deleted; more are added.
        size: most jobs to delete.

    Returns:
        how many went, and whether there may be more.

    Raises:
        django.db.Error: not because of a reference.
    """
    return delete_batch(alias, _old(alias, status, days), kept, size)


def delete_batch(alias: str, rows: JobQuerySet, kept: set[uuid.UUID], size: int) -> tuple[int, bool]:
    """Delete one batch of settled jobs, with their events.

    Args, returns and raises: as :func:`prune_batch`.
    """
    rows = _without_protected(rows, alias)
    rows = rows.exclude(pk__in=kept) if kept else rows
    try:
        ids = _delete(alias, rows, size)
    except IntegrityError:
        # A reference that Django knows nothing of, or one that was written this moment: the others go one by one.
        found = list(rows.values_list("pk", flat=True)[:size])
        ids = []
        for pk in found:
            try:
                ids += _delete(alias, rows.filter(pk=pk), 1)
            except IntegrityError:
                kept.add(pk)
        return len(ids), len(found) == size
    return len(ids), len(ids) == size


#: By whose retention a group's row is kept.
_AS = {
    GroupState.DONE: Status.SUCCEEDED,
    GroupState.FAILED: Status.FAILED,
    GroupState.CANCELLED: Status.CANCELLED,
}


def prune_groups(alias: str) -> int:
    """Delete the rows of old decided groups; those of their parts can go then. Returns how many went."""
    total = 0
    for state, status in _AS.items():
        days = settings.RETENTION[status]
        if days is None:
            continue
        old = JobGroup.objects.using(alias).filter(
            state=state, decided_at__lt=Now() - datetime.timedelta(seconds=days * 86400)
        )
        more = True
        while more:
            with transaction.atomic(using=alias):
                # One that a requeue opens again just now is skipped.
                locked = old.select_for_update(
                    skip_locked=skips_locked(connections[alias]), no_key=locks_no_keys(connections[alias])
                )
                ids = list(locked.values_list("pk", flat=True)[:BATCH])
                delete_alone(JobGroup.objects.using(alias).filter(pk__in=ids), alias)
            total += len(ids)
            more = len(ids) == BATCH
    return total


def _delete(alias: str, rows: JobQuerySet, size: int) -> list[uuid.UUID]:
    with transaction.atomic(using=alias):
        ids = list(rows.lock().values_list("pk", flat=True)[:size])
        referred = {pk for relation in _relations(alias) for pk in _referring(relation, alias, ids)}
        if referred:
            # Locked as they are, Django's own way is safe.
            Job.objects.using(alias).filter(pk__in=referred).delete()
        deletable = Job.objects.using(alias).filter(pk__in=[pk for pk in ids if pk not in referred])
        delete_alone(deletable, alias)
        for beside in (JobEvent, JobState):
            delete_alone(beside._default_manager.using(alias).filter(job_id__in=ids), alias)
        if connections[alias].vendor == "postgresql":
            with connections[alias].cursor() as cursor:  # deferred constraints would fail at COMMIT
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
                cursor.execute("SET CONSTRAINTS ALL DEFERRED")
    return ids


def _prune_saved_groups(alias: str) -> None:
    """What was kept of a group goes when the jobs that it was saved with would."""
    days = [days for days in settings.RETENTION.values() if days is not None]
    if len(days) == len(settings.RETENTION):
        old = Now() - datetime.timedelta(seconds=max(days) * 86400)
        delete_alone(SavedGroup.objects.using(alias).filter(at__lt=old), alias)


def _prune_cancelled_workflows(alias: str) -> None:
    """What keeps a cancelled workflow from going on is kept as long as its rows."""
    days = settings.RETENTION[Status.CANCELLED]
    if days is not None:
        old = Now() - datetime.timedelta(seconds=days * 86400)
        delete_alone(CancelledWorkflow.objects.using(alias).filter(over=True, at__lt=old), alias)


def _prune_processes(alias: str) -> None:
    """Who has not been seen for a day is forgotten."""
    old = Now() - datetime.timedelta(days=PROCESS_DAYS)
    ids = list(ProcessSeen.objects.using(alias).filter(seen_at__lt=old).values_list("pk", flat=True)[:BATCH])
    delete_alone(ProcessSeen.objects.using(alias).filter(pk__in=ids, seen_at__lt=old), alias)
    delete_alone(Process.objects.using(alias).filter(started_at__lt=old, seen=None), alias)


def _old(alias: str, status: str, days: float) -> JobQuerySet:
    return _of_age(deletable(alias), status, days)


def settled(alias: str, status: str, days: float) -> JobQuerySet:
    """Jobs that ended so many days ago, deletable or not."""
    return _of_age(Job.objects.using(alias), status, days)


def _of_age(rows: JobQuerySet, status: str, days: float) -> JobQuerySet:
    rows = rows.filter(status=status, finished_at__lt=Now() - datetime.timedelta(seconds=days * 86400))
    counted = statistics.counted_until(rows.db)
    return rows if counted is None else rows.filter(finished_at__lt=counted)


def unprotected(alias: str, status: str, days: float) -> JobQuerySet:
    """Jobs that ended so many days ago, and that neither a group nor the application's rows keep."""
    return _without_protected(_old(alias, status, days), alias)


def _without_protected(rows: JobQuerySet, alias: str) -> JobQuerySet:
    for relation in _relations(alias):
        if relation.on_delete in _KEEPING:
            rows = rows.exclude(_referred_by(relation, alias))
    return rows


def deletable(alias: str) -> JobQuerySet:
    """Jobs but those that a group waits for, or will when one of them is requeued: its body wants their results."""
    waiting = JobGroup.objects.filter(pk=OuterRef("owes"), state__in=[GroupState.OPEN, GroupState.FAILED])
    return Job.objects.using(alias).filter(~Exists(waiting))


# --- rows that refer to jobs ------------------------------------------------------------------------------------------


def _relations(alias: str) -> list[Any]:
    """Foreign keys to a job from the application's models of this database, many-to-many tables included."""
    return [
        relation
        for relation in Job._meta.get_fields(include_hidden=True)
        if isinstance(relation, ManyToOneRel)
        and relation.related_model not in (JobEvent, JobState)
        and may_hold(alias, relation.related_model)
        and (relation.on_delete is not DO_NOTHING or getattr(relation.field, "db_constraint", True))
    ]


def _referring(relation: Any, alias: str, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    rows = relation.related_model._base_manager.using(alias).filter(**{f"{relation.field.attname}__in": ids})
    return set(rows.values_list(relation.field.attname, flat=True))


def _referred_by(relation: Any, alias: str) -> Exists:
    rows = relation.related_model._base_manager.using(alias)
    return Exists(rows.filter(**{relation.field.attname: OuterRef("pk")}))


def protected(alias: str) -> Iterator[tuple[str, str, int]]:
    """Old settled jobs that rows of the application keep: the field that refers to them, its ``on_delete``, and how
    many, up to `COUNTED`."""
    for relation in _relations(alias):
        if relation.on_delete not in _KEEPING:
            continue
        count = sum(
            _old(alias, status, days).filter(_referred_by(relation, alias))[:COUNTED].count()
            for status, days in settings.RETENTION.items()
            if days is not None
        )
        if count:
            yield f"{relation.related_model._meta.label}.{relation.field.name}", relation.on_delete.__name__, count


def _say_what_is_protected(alias: str) -> None:
    for name, on_delete, count in protected(alias):
        logger.info(
            "%d settled job(s)%s are kept, because %s refers to them with on_delete=%s.",
            count,
            " or more" if count >= COUNTED else "",
            name,
            on_delete,
        )
