"""What has become of the jobs, minute by minute and hour by hour: sweep/statistics.py writes it."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from reliable_jobs.conf import RELEASE_LENGTH
from reliable_jobs.status import Ending

#: Run times and waits are counted by powers of two: 0 for less than a millisecond, then from 2ⁿ⁻¹ to 2ⁿ of them; the
#: last one holds all that took longer than 70 minutes.
BUCKETS = 24
MINUTE, HOUR = 60, 3600


def _buckets(letter: str) -> dict[str, models.IntegerField[int, int]]:
    return {f"{letter}{number}": models.IntegerField(default=0, db_default=0) for number in range(BUCKETS)}


class Stat(models.Model):
    """Runs of a task that ended in one way within a minute or an hour. Times are in milliseconds, and of successes
    only: from the claim to the settlement, and from the due time to the claim."""

    span = models.PositiveSmallIntegerField(
        choices=((MINUTE, pgettext_lazy("span", "minute")), (HOUR, pgettext_lazy("span", "hour")))
    )
    #: Its beginning.
    at = models.DateTimeField()
    task = models.CharField(max_length=255)
    queue = models.CharField(max_length=255)
    ending = models.CharField(max_length=10, choices=Ending.choices)
    release = models.CharField(max_length=RELEASE_LENGTH, blank=True)
    n = models.IntegerField()
    sum_ms = models.BigIntegerField(default=0, db_default=0)
    max_ms = models.BigIntegerField(default=0, db_default=0)
    wait_sum = models.BigIntegerField(default=0, db_default=0)
    wait_max = models.BigIntegerField(default=0, db_default=0)
    # r0 … r23 of run times, w0 … w23 of waits.
    vars().update(**_buckets("r"), **_buckets("w"))

    class Meta:
        verbose_name = _("stat")
        verbose_name_plural = _("stats")
        constraints = (
            models.UniqueConstraint(
                fields=["span", "at", "task", "queue", "ending", "release"], name="reliable_stat_once"
            ),
        )

    def __str__(self) -> str:
        return f"{self.n} {self.ending} {self.task} in {self.span} s from {self.at}"


class QueueStat(models.Model):
    """How deep a queue was at a minute. None where it held no job."""

    at = models.DateTimeField()
    queue = models.CharField(max_length=255)
    #: Due, running or not: a first atomic run does not show.
    waiting = models.IntegerField()
    #: Not due yet.
    delayed = models.IntegerField()
    #: With a committed claim.
    running = models.IntegerField()
    #: Seconds for which the oldest of the waiting ones is due.
    oldest_s = models.IntegerField()

    class Meta:
        verbose_name = _("queue stat")
        verbose_name_plural = _("queue stats")
        constraints = (models.UniqueConstraint(fields=["at", "queue"], name="reliable_queue_stat_once"),)

    def __str__(self) -> str:
        return f"{self.queue}: {self.waiting} waiting at {self.at}"


class StatState(models.Model):
    """How far the statistics have come: one row. Whoever holds its lock writes them."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    rolled = models.DateTimeField()

    class Meta:
        verbose_name = _("stat state")
        verbose_name_plural = _("stat states")

    def __str__(self) -> str:
        return f"statistics to {self.rolled}"
