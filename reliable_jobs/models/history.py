"""What is said of a job beside its row, which a run locks: what the run says of itself, and the job's history."""

from __future__ import annotations

from django.db import models
from django.db.models import Q, functions
from django.utils.translation import gettext_lazy as _

from reliable_jobs.columns import StampField
from reliable_jobs.conf import RELEASE_LENGTH
from reliable_jobs.models.jobs import Job
from reliable_jobs.status import EventKind


class JobState(models.Model):
    """What a run says of itself before it has ended: STARTED, and Celery's ``update_state()``.

    Beside the job's row, because that one is locked by the run, whose transaction nobody sees; without a database
    constraint, as an event's reference. It counts while the row has the same epoch: what an earlier run said is over.
    """

    job = models.OneToOneField(
        Job, on_delete=models.CASCADE, db_constraint=False, primary_key=True, related_name="task_state"
    )
    epoch = models.PositiveIntegerField()
    state = models.CharField(max_length=255)
    #: JSON text; NULL for none.
    meta = models.TextField(null=True, blank=True)  # noqa: DJ001 - "" is no JSON
    at = StampField(db_default=functions.Now())  # noqa: TID251 - see StampField

    class Meta:
        verbose_name = _("job state")
        verbose_name_plural = _("job states")

    def __str__(self) -> str:
        return self.state


class JobEvent(models.Model):
    """Something that a person will ask about. The reference to the job is not a database constraint: an event must be
    writable while a run holds the job's row, and pruning must not take a lock on it."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, db_constraint=False, related_name="events")
    kind = models.CharField(max_length=20, choices=EventKind.choices)
    at = StampField(db_default=functions.Now())  # noqa: TID251 - see StampField
    #: Who or what did it: a user's name, a worker's, "sweeper".
    actor = models.CharField(max_length=255, blank=True, default="")
    detail = models.TextField(blank=True, default="")
    traceback = models.TextField(blank=True, default="")
    #: Copied from the job, for statistics: pruning and requeueing change what its row says.
    task = models.CharField(max_length=255, blank=True, default="", db_default="")
    queue = models.CharField(max_length=255, blank=True, default="", db_default="")
    error_class = models.CharField(max_length=255, blank=True, default="", db_default="")
    #: Of the process that ran the job; where none did, of the one that wrote this.
    release = models.CharField(max_length=RELEASE_LENGTH, blank=True, default="", db_default="")
    #: Whether the job has ended with it. False: a run has, and the job goes on. NULL: neither.
    final = models.BooleanField(null=True, blank=True)
    #: The bulk act that this was a step of.
    act_id = models.UUIDField(null=True, blank=True)

    class Meta:
        verbose_name = _("job event")
        verbose_name_plural = _("job events")
        indexes = (
            models.Index(fields=["at"], name="reliable_job_event_at"),
            models.Index(fields=["act_id"], name="reliable_job_event_act", condition=Q(act_id__isnull=False)),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.at:%Y-%m-%d %H:%M:%S}" if self.at else self.kind
