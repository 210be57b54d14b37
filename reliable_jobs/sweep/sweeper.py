"""Publishes what is due and was never sent, publishes again what is overdue, takes jobs back from dead runs.

The order at each tick: due rows, overdue rows, lost runs, groups, declared querysets. A row's ``sends`` and
``check_at`` are raised and committed *before* its message goes out, so that no lock is held across anything that can
block, and no two sweepers send the same row at once. Any number of them may run: SKIP LOCKED shares the work out. A
message that was not confirmed may have arrived all the same: its row is sent again, and the worker drops the copy.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import uuid
from collections.abc import Callable, Iterable

from celery import Celery
from django.db import connections, transaction
from django.db.models import Q

from reliable_jobs import databases, lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.compat.django import skips_locked
from reliable_jobs.conf import settings
from reliable_jobs.dispatch import on_commit
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.dispatch.receipt import Receipt
from reliable_jobs.message.row_to_message import SENT, outgoing
from reliable_jobs.models import Job
from reliable_jobs.status import FINAL, Status
from reliable_jobs.sweep import unconfirmed
from reliable_jobs.sweep.ensure_jobs import sweep_declared
from reliable_jobs.workflow import cancelling, groups, plain_parts

logger = logging.getLogger(__name__)

#: What one batch may spend on the broker. Not a request's budget: a sweep has time.
PUBLISH_TIMEOUT = 10.0
#: Settlements looked at to see how far a queue has come.
FRONTIER_SAMPLE = 200
#: What one round may spend on asking the broker for its queues' depths, in seconds.
DEPTHS_TIMEOUT = 5.0
#: How long ago a settlement still says something about its queue, in seconds.
FRONTIER_AGE = 30.0
#: How much earlier than a settled job a row must have been due to count as overtaken, in seconds: prefetched messages
#: and long functions finish out of order.
OVERTAKING_SLACK = 5.0


#: Called with each full window of due rows that is about to be published, where the database lets another thread take
#: the next ones meanwhile (SKIP LOCKED).
OnBacklog = Callable[[], None]


@dataclasses.dataclass
class Report:
    """What one sweep did, per database added up."""

    published: int = 0
    republished: int = 0
    unconfirmed: int = 0
    #: Of them, those that no queue takes, or whose rows can't be read.
    returned: int = 0
    rescued: int = 0
    #: Groups of which the last part had ended unnoticed.
    decided: int = 0
    #: Jobs that a sweep of declared querysets has enqueued.
    found: int = 0
    #: A kind met its limit: there is more to do at once.
    more: bool = False
    #: Rows stayed due, because the broker was away or did not confirm them.
    left_due: bool = False

    def _numbers(self) -> dict[str, int]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("more", "left_due")}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._numbers().items())

    @property
    def idle(self) -> bool:
        return not any(self._numbers().values())


def sweep(app: Celery, *, actor: str = "sweeper", on_backlog: OnBacklog | None = None) -> Report:
    """One round over every database that holds jobs.

    Args:
        actor: who sweeps, for the jobs' history.
        on_backlog: see :data:`OnBacklog`.

    Raises:
        Exception: of a database that could not be swept, after the others have been.
    """
    report = Report()

    def one(alias: str) -> None:
        cancelling.sweep(alias)
        _publish_due(app, alias, report, on_backlog)
        _publish_overdue(app, alias, report)
        rescued = lifecycle.rescue(alias, settings.SWEEP_LIMIT, actor=actor)
        report.rescued += rescued
        report.more |= rescued >= settings.SWEEP_LIMIT
        plain_parts.sweep(app, alias)
        decided = groups.sweep(app, alias)
        report.decided += decided
        report.more |= decided >= groups.LIMIT

    try:
        databases.on_each(one, "The sweep")
    finally:
        report.found = sweep_declared()
        if not report.idle:
            logger.info("Sweep: %s", report)
    return report


def publish_due(app: Celery, on_backlog: OnBacklog | None = None) -> Report:
    """The first part of a sweep alone, for a relay: rows that are due and were never sent.

    Args:
        on_backlog: see :data:`OnBacklog`.

    Raises:
        Exception: of a database that could not be read, after the others have been.
    """
    report = Report()
    databases.on_each(lambda alias: _publish_due(app, alias, report, on_backlog), "The publishing of due jobs")
    return report


def send_again(app: Celery, alias: str, job_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Publish jobs once more, each in a message of its own, as the next send of each. Returns those that were there to
    be sent: waiting, and held by nobody.

    Raises:
        django.db.DatabaseError: nothing was sent.
    """
    with transaction.atomic(using=alias):
        waiting = Job.objects.using(alias).filter(pk__in=list(job_ids), status=Status.WAITING, sends__gt=0)
        jobs = list(waiting.only(*SENT).lock())
        _raise_sends(alias, jobs)
    if jobs:
        _publish(app, alias, jobs, Report())
    return {job.pk for job in jobs}


# --- due, never sent --------------------------------------------------------------------------------------------------


def _publish_due(app: Celery, alias: str, report: Report, on_backlog: OnBacklog | None) -> None:
    left = settings.SWEEP_LIMIT
    checked = False
    while left > 0:
        window = min(left, settings.PUBLISH_WINDOW)
        if not checked:
            if not Job.objects.using(alias).due().exists():
                return
            if not publisher(app).reachable():
                report.left_due = True
                return  # the broker is away: no send is counted that can't happen
            checked = True
        with transaction.atomic(using=alias):
            jobs = list(Job.objects.using(alias).due().only(*SENT).order_by("due_at").lock()[:window])
            _raise_sends(alias, jobs)
        if not jobs:
            return
        if on_backlog and len(jobs) == window and skips_locked(connections[alias]):
            on_backlog()
        receipt = _publish(app, alias, jobs, report)
        report.published += len(receipt.confirmed)
        if receipt.error is not None or receipt.nacked:
            report.left_due = True
            return  # what went back is due again at once: not in this round
        if len(jobs) < window:
            return
        left -= len(jobs)
    report.more = True


def _raise_sends(alias: str, jobs: Iterable[Job]) -> None:
    """Count the send and set the next look, one statement per number of sends."""
    by_sends: dict[int, list[uuid.UUID]] = {}
    for job in jobs:
        by_sends.setdefault(job.sends, []).append(job.pk)
        job.sends += 1
    for sends, ids in by_sends.items():
        pause = next_check(settings.GRACE, sends + 1, settings.MAX_GRACE)
        Job.objects.using(alias).filter(pk__in=ids, status=Status.WAITING, sends=sends).update(
            sends=sends + 1, check_at=Now() + datetime.timedelta(seconds=pause)
        )


def next_check(grace: float, sends: int, limit: float) -> float:
    """Seconds from the ``sends``-th publish to the sweeper's next look: it doubles with every send (I8)."""
    return min(limit, grace * 2.0 ** min(max(sends, 1) - 1, 32))


def _publish(app: Celery, alias: str, jobs: list[Job], report: Report) -> Receipt:
    messages, unreadable = [], {}
    for job in jobs:
        try:
            messages.append(outgoing(job, alias))
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # one bad row must not hold up the others
            unreadable[job.pk] = f"unreadable envelope: {error!r}"
    receipt = publisher(app).publish(on_commit.wanted(messages), timeout=PUBLISH_TIMEOUT)
    on_commit.mark_sent(messages, receipt)
    receipt.returned.update(unreadable)
    left = [job for job in jobs if job.pk not in receipt.confirmed]
    if left:
        report.unconfirmed += len(left)
        report.returned += sum(job.pk in receipt.returned for job in left)
        unconfirmed.take_back(alias, left, receipt)
    return receipt


# --- overdue ----------------------------------------------------------------------------------------------------------


def _publish_overdue(app: Celery, alias: str, report: Report) -> None:
    queues = list(Job.objects.using(alias).overdue().order_by().values_list("queue", flat=True).distinct())
    if not queues or not publisher(app).reachable():
        return
    depths = publisher(app).depths(queues, timeout=DEPTHS_TIMEOUT)
    # After an outage the workers need a moment to come back, and then take what waits in the broker. One at a
    # time is still tried: a broker that goes and comes all the time must not stop recovery.
    limit = settings.RECOVERY_LIMIT if publisher(app).back_for >= settings.GRACE else 1
    for queue in queues:
        if queue in depths and depths[queue].abandoned:
            continue  # the messages are there; what is missing is a worker
        with transaction.atomic(using=alias):
            jobs = _probably_lost(alias, queue, limit)
            _raise_sends(alias, jobs)
        if not jobs:
            continue
        receipt = _publish(app, alias, jobs, report)
        report.republished += len(receipt.confirmed)
        if receipt.error is not None:
            return
        report.more |= len(receipt.confirmed) >= settings.PUBLISH_WINDOW


def _probably_lost(alias: str, queue: str, recovery_limit: int) -> list[Job]:
    """Overdue rows of a queue whose messages are probably lost.

    Where jobs of a priority move, overtaking decides: a first-send job of the same one that was due later has settled.
    Where none has settled lately, at most ``recovery_limit`` messages are out beside the first ones, until some of
    their jobs have settled. A row that is not selected costs no write.
    """
    overdue = Job.objects.using(alias).overdue().filter(queue=queue).only(*SENT)
    overtaken, unseen = Q(pk=None), Q()
    for priority, due_at in _frontier(alias, queue).items():
        overtaken |= Q(priority=priority, due_at__lt=due_at - datetime.timedelta(seconds=OVERTAKING_SLACK))
        unseen &= Q(priority__isnull=False) if priority is None else Q(priority__isnull=True) | ~Q(priority=priority)
    found = list(overdue.filter(overtaken).order_by("check_at").lock()[: settings.PUBLISH_WINDOW])
    # Priorities of which nothing has settled lately are not overtaken by anybody: they must not wait for that.
    again = Job.objects.using(alias).sent_again().filter(unseen, queue=queue)
    limit = recovery_limit - sum(sends - 1 for sends in again.values_list("sends", flat=True)[:recovery_limit])
    candidates = overdue.filter(unseen)
    if limit > 0:
        found += candidates.order_by("check_at").lock()[:limit]
    elif not again.filter(check_at__gt=Now()).exists():
        # All of them may be lost as well. One is tried, the one with the longest pause before the next try; when it
        # settles there is room for others.
        found += candidates.order_by("-sends", "check_at").lock()[:1]
    return found


def _frontier(alias: str, queue: str) -> dict[int | None, datetime.datetime]:
    """By priority, the latest due time among the first-send jobs that settled lately. {} when none did."""
    recent = (
        Job.objects.using(alias)
        .filter(
            queue=queue,
            # A cancelled job says nothing of how far the workers have come.
            status__in=[str(status) for status in FINAL if status != Status.CANCELLED],
            finished_at__gt=Now() - datetime.timedelta(seconds=FRONTIER_AGE),
        )
        .order_by("-finished_at")
        .values("priority", "due_at", "sends", "failures")[:FRONTIER_SAMPLE]
    )
    newest: dict[int | None, datetime.datetime] = {}
    for row in recent:
        if row["sends"] == 1 and row["failures"] == 0 and row["due_at"] is not None:
            known = newest.get(row["priority"])
            newest[row["priority"]] = row["due_at"] if known is None else max(known, row["due_at"])
    return newest
