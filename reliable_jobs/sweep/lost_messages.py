"""Which overdue jobs have probably lost their messages.

The depth of a queue can't tell: prefetched messages count as none, and a queue that was wiped looks busy while others
arrive. Overtaking can.
"""

from __future__ import annotations

import datetime

from django.db.models import Q

from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.message.row_to_message import RowToSend
from reliable_jobs.models import Job
from reliable_jobs.status import FINAL, Status

#: Settlements looked at to see how far a queue has come.
FRONTIER_SAMPLE = 200
#: How long ago a settlement still says something about its queue, in seconds.
FRONTIER_AGE = 30.0
#: How much earlier than a settled job a row must have been due to count as overtaken, in seconds: prefetched messages
#: and long functions finish out of order.
OVERTAKING_SLACK = 5.0


def probably_lost(alias: str, queue: str, recovery_limit: int) -> list[RowToSend]:
    """Overdue rows of a queue whose messages are probably lost.

    Where jobs of a priority move, overtaking decides: a first-send job of the same one has settled that was due later
    than this one, or, if it was sent again, later than its check.
    Where none has settled lately, at most ``recovery_limit`` messages are out beside the first ones, until some of
    their jobs have settled. A row that is not selected costs no write.
    """
    overdue = Job.objects.using(alias).overdue().filter(queue=queue)
    overtaken, unseen = Q(pk=None), Q()
    for priority, due_at in _frontier(alias, queue).items():
        passed = due_at - datetime.timedelta(seconds=OVERTAKING_SLACK)
        # A later send stands behind what was due before it: the queue must have passed the time of its check, too.
        overtaken |= Q(priority=priority) & (Q(sends=1, due_at__lt=passed) | Q(sends__gt=1, check_at__lt=passed))
        unseen &= Q(priority__isnull=False) if priority is None else Q(priority__isnull=True) | ~Q(priority=priority)
    found = RowToSend.each(overdue.filter(overtaken).order_by("check_at").lock()[: settings.PUBLISH_WINDOW])
    # Priorities of which nothing has settled lately are not overtaken by anybody: they must not wait for that.
    again = Job.objects.using(alias).sent_again().filter(unseen, queue=queue)
    limit = recovery_limit - sum(sends - 1 for sends in again.values_list("sends", flat=True)[:recovery_limit])
    candidates = overdue.filter(unseen)
    if limit > 0:
        found += RowToSend.each(candidates.order_by("check_at").lock()[:limit])
    elif not again.filter(check_at__gt=Now()).exists():
        # All of them may be lost as well. One is tried, the one with the longest pause before the next try; when it
        # settles there is room for others.
        found += RowToSend.each(candidates.order_by("-sends", "check_at").lock()[:1])
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
