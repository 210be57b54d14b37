"""Publishes what is due and was never sent, publishes again what is overdue, takes jobs back from dead runs.

The order at each tick: due rows, overdue rows, lost runs, groups, declared querysets. A row's ``sends`` and
``check_at`` are raised and committed *before* its message goes out, so that no lock is held across anything that can
block, and no two sweepers send the same row at once. Any number of them may run: SKIP LOCKED shares the work out. A
message that was not confirmed may have arrived all the same: its row is sent again, and the worker drops the copy.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import uuid
from collections.abc import Callable, Iterable

from celery import Celery
from django.db import connections, transaction

from reliable_jobs import databases, lifecycle, queues
from reliable_jobs.compat.django import skips_locked
from reliable_jobs.conf import settings
from reliable_jobs.dispatch import on_commit
from reliable_jobs.dispatch.answers import Confirms
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.message.row_to_message import RowToSend, outgoing
from reliable_jobs.models import Job, PauseKind
from reliable_jobs.status import Status
from reliable_jobs.sweep import acts, sends, unconfirmed
from reliable_jobs.sweep.ensure_jobs import sweep_declared
from reliable_jobs.sweep.lost_messages import probably_lost
from reliable_jobs.workflow import cancelling, chords, plain_parts

logger = logging.getLogger(__name__)

#: What one batch may spend on the broker. Not a request's budget: a sweep has time.
PUBLISH_TIMEOUT = 10.0
#: What one round may spend on asking the broker for its queues' depths, in seconds.
DEPTHS_TIMEOUT = 5.0
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


def sweep(
    app: Celery, *, actor: str = "sweeper", report: Report | None = None, on_backlog: OnBacklog | None = None
) -> Report:
    """One round over every database that holds jobs.

    Args:
        actor: who sweeps, for the jobs' history.
        report: what is done is added to it, for a caller who has to know it although a database fails.
        on_backlog: see :data:`OnBacklog`.

    Raises:
        Exception: of a database that could not be swept, after the others have been.
    """
    report = Report() if report is None else report

    def one(alias: str) -> None:
        cancelling.sweep(alias)
        lifecycle.bring_back(alias)
        _publish_due(app, alias, report, on_backlog)
        _publish_overdue(app, alias, report)
        rescued = lifecycle.rescue(alias, settings.SWEEP_LIMIT, actor=actor)
        report.rescued += rescued
        report.more |= rescued >= settings.SWEEP_LIMIT
        report.more |= acts.sweep(alias)
        plain_parts.sweep(app, alias)
        decided = chords.sweep(app, alias)
        report.decided += decided
        report.more |= decided >= chords.LIMIT

    try:
        databases.on_each(one, "The sweep")
    finally:
        report.found = sweep_declared()
        if not report.idle:
            logger.info("Sweep: %s", report)
    return report


def publish_due(app: Celery, report: Report, on_backlog: OnBacklog | None = None) -> None:
    """The first part of a sweep alone, for a relay: rows that are due and were never sent.

    Args:
        report: what is done is added to it, also where a database fails.
        on_backlog: see :data:`OnBacklog`.

    Raises:
        Exception: of a database that could not be read, after the others have been.
    """
    databases.on_each(lambda alias: _publish_due(app, alias, report, on_backlog), "The publishing of due jobs")


def send_again(app: Celery, alias: str, job_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Publish jobs a second time, each in a message of its own. Returns those that were there to be sent: waiting, sent
    once, and held by nobody. A message that comes back again and again must not send its jobs each time.

    Raises:
        django.db.DatabaseError: nothing was sent.
    """
    with transaction.atomic(using=alias):
        waiting = Job.objects.using(alias).filter(pk__in=list(job_ids), sends=1).still(Status.WAITING)
        jobs = RowToSend.each(waiting.lock())
        sends.raise_sends(alias, jobs)
    if jobs:
        _publish(app, alias, jobs, Report())
    return {job.pk for job in jobs}


# --- due, never sent --------------------------------------------------------------------------------------------------


def _publish_due(app: Celery, alias: str, report: Report, on_backlog: OnBacklog | None) -> None:
    names, anything_paused = queues.with_past(queues.UNSENT, alias)
    due = collections.deque(names)
    pauses = lifecycle.paused(alias) if anything_paused else []
    for pause in pauses:
        if pause.kind == PauseKind.QUEUE and pause.name in due:
            due.remove(pause.name)
    if not due:
        return
    if not (publisher(app).answered_lately or publisher(app).reachable()):
        report.left_due = True
        return  # the broker is away: no send is counted that can't happen
    left = settings.SWEEP_LIMIT
    while left > 0 and due:
        taken, jobs = sends.take_due(alias, due, min(left, settings.PUBLISH_WINDOW), paused=bool(pauses))
        if not taken:
            return
        left -= taken
        if on_backlog and due and skips_locked(connections[alias]):
            on_backlog()
        if not jobs:
            continue
        confirms = _publish(app, alias, jobs, report)
        report.published += len(confirms.confirmed)
        if confirms.error is not None or confirms.nacked:
            report.left_due = True
            return  # what went back is due again at once: not in this round
    report.more |= bool(due)


def _publish(app: Celery, alias: str, jobs: list[RowToSend], report: Report) -> Confirms:
    messages, relayed, unreadable = [], [], {}
    for job in jobs:
        try:
            messages.append(message := outgoing(job, alias))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:  # of one bad row
            unreadable[job.pk] = f"unreadable envelope: {error!r}"
            continue
        if message.relayed_from:
            relayed.append(message)
    wanted = on_commit.wanted(messages, relayed) if relayed else messages
    confirms = publisher(app).publish(wanted, timeout=PUBLISH_TIMEOUT)
    if relayed:
        on_commit.mark_sent(relayed, confirms)
    confirms.returned.update(unreadable)
    left = [job for job in jobs if job.pk not in confirms.confirmed]
    if left:
        report.unconfirmed += len(left)
        report.returned += sum(job.pk in confirms.returned for job in left)
        unconfirmed.take_back(alias, left, confirms)
    return confirms


# --- overdue ----------------------------------------------------------------------------------------------------------


def _publish_overdue(app: Celery, alias: str, report: Report) -> None:
    overdue, _ = queues.with_past(queues.SENT, alias)
    if not overdue or not publisher(app).reachable():
        return
    depths = publisher(app).depths(overdue, timeout=DEPTHS_TIMEOUT)
    # After an outage the workers need a moment to come back, and then take what waits in the broker. One at a
    # time is still tried: a broker that goes and comes all the time must not stop recovery.
    limit = settings.RECOVERY_LIMIT if publisher(app).back_for >= settings.GRACE else 1
    for queue in overdue:
        if queue in depths and depths[queue].abandoned:
            continue  # the messages are there; what is missing is a worker
        with sends.counting(alias):
            jobs = probably_lost(alias, queue, limit)
            sends.raise_sends(alias, jobs)
        if not jobs:
            continue
        confirms = _publish(app, alias, jobs, report)
        report.republished += len(confirms.confirmed)
        if confirms.error is not None:
            return
        report.more |= len(confirms.confirmed) >= settings.PUBLISH_WINDOW
