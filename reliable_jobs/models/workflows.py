"""What holds jobs together: the headers of chords, cancelled workflows, saved groups."""

from __future__ import annotations

from django.db import models
from django.db.models import Q, functions
from django.utils.translation import gettext_lazy as _

from reliable_jobs.columns import StampField
from reliable_jobs.status import GroupState


class JobGroup(models.Model):
    """The header of a chord, and what follows it. Only lifecycle/groups.py changes ``state``.

    At each commit the header has ended exactly if nothing that owes it is unfinished: no size and no counter decides.
    There are no foreign keys: their KEY SHARE locks would block the locks of runs.
    """

    #: Celery's group id.
    id = models.UUIDField(primary_key=True, editable=False)
    state = models.CharField(max_length=10, choices=GroupState.choices, default=GroupState.OPEN)
    #: The id under which the chord's result is asked for: of the body, or of its last step.
    body_id = models.UUIDField(null=True, blank=True)
    #: The frozen signature of the body, as message/result_text.py writes values.
    body = models.TextField()
    #: The group of which this one is a part, until the rows of its body are.
    owes = models.UUIDField(null=True, blank=True)
    place = models.CharField(max_length=255, blank=True, default="", db_default="")
    #: How many parts it was called with, where that is known: for people.
    size = models.PositiveIntegerField(null=True, blank=True)
    root_id = models.UUIDField(null=True, blank=True)
    parent_id = models.UUIDField(null=True, blank=True)
    priority = models.SmallIntegerField(null=True, blank=True)
    #: Why it failed.
    error = models.TextField(blank=True, default="")
    created_at = StampField(db_default=functions.Now(), editable=False)  # noqa: TID251 - see StampField
    decided_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = _("job group")
        verbose_name_plural = _("job groups")
        indexes = (
            models.Index(fields=["owes"], name="reliable_group_owes", condition=Q(state=GroupState.OPEN)),
            models.Index(fields=["created_at"], name="reliable_group_open", condition=Q(state=GroupState.OPEN)),
            models.Index(fields=["body_id"], name="reliable_group_body"),
            models.Index(fields=["parent_id"], name="reliable_group_parent", condition=Q(parent_id__isnull=False)),
            models.Index(fields=["decided_at"], name="reliable_group_decided", condition=Q(decided_at__isnull=False)),
        )

    def __str__(self) -> str:
        return f"group {self.id} ({self.state})"


class CancelledWorkflow(models.Model):
    """A workflow that was cancelled as a whole. Claims, and what follows a job, look here: lifecycle/workflows.py."""

    root_id = models.UUIDField(primary_key=True, editable=False)
    actor = models.CharField(max_length=255, blank=True, default="")
    at = StampField(db_default=functions.Now())  # noqa: TID251 - see StampField
    #: All of it has ended, so that the sweep need not look.
    over = models.BooleanField(default=False, db_default=False)

    class Meta:
        verbose_name = _("cancelled workflow")
        verbose_name_plural = _("cancelled workflows")
        indexes = (models.Index(fields=["at"], name="reliable_cancelled_open", condition=Q(over=False)),)

    def __str__(self) -> str:
        return f"workflow {self.root_id}, cancelled"


class SavedGroup(models.Model):
    """Which results belong to a group that was saved (``GroupResult.save()``), where no result backend keeps it."""

    group_id = models.CharField(max_length=255, primary_key=True)
    #: JSON text of the results' ids, as Celery's ``as_tuple()`` has them.
    results = models.TextField()
    at = StampField(db_default=functions.Now())  # noqa: TID251 - see StampField

    class Meta:
        verbose_name = _("saved group")
        verbose_name_plural = _("saved groups")
        indexes = (models.Index(fields=["at"], name="reliable_saved_group_at"),)

    def __str__(self) -> str:
        return self.group_id
