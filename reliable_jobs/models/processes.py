"""Who works: the processes that run, publish and sweep, and when each was last seen."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import functions
from django.utils.translation import gettext_lazy as _

from reliable_jobs.columns import StampField
from reliable_jobs.conf import RELEASE_LENGTH
from reliable_jobs.status import ProcessKind


class Process(models.Model):
    """A worker, beat or relay. Written when it starts, and once more when it ends; presence/ does both.

    The id is made at the start. Host and pid would repeat: every container's worker may have pid 1.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=10, choices=ProcessKind.choices)
    #: Celery's node name of a worker; "beat@host", "relay@host".
    name = models.CharField(max_length=255)
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    release = models.CharField(max_length=RELEASE_LENGTH, blank=True, default="", db_default="")
    #: Of a worker: prefork, threads, gevent … and how many run at a time.
    pool = models.CharField(max_length=32, blank=True, default="", db_default="")
    started_at = StampField(db_default=functions.Now())  # noqa: TID251 - see StampField
    #: It has ended by itself. NULL of one that was killed: see ``ProcessSeen.seen_at``.
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = _("process")
        verbose_name_plural = _("workers and other processes")

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class ProcessSeen(models.Model):
    """What a process said of itself last. One UPDATE every ten seconds, so the row is narrow, has no index but its key,
    and its pages have room for its next version: then PostgreSQL reuses the space and writes no index (HOT)."""

    process = models.OneToOneField(
        Process, on_delete=models.CASCADE, db_constraint=False, primary_key=True, related_name="seen"
    )
    seen_at = StampField(db_default=functions.Now())  # noqa: TID251 - see StampField
    #: Names of the queues that it consumes; empty while the broker is away. Of one that has ended: those to its end.
    queues = models.JSONField(default=list, blank=True)
    #: What runs: pairs of a task's id and the seconds for which it has run, at most 50.
    active = models.JSONField(default=list, blank=True)
    #: Whether it is connected to the broker; NULL of one that has no connection of its own.
    broker_ok = models.BooleanField(null=True, blank=True)

    class Meta:
        verbose_name = _("process seen")
        verbose_name_plural = _("process seens")

    def __str__(self) -> str:
        return f"{self.process_id} seen {self.seen_at}"
