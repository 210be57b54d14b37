"""Acts on many jobs that a person has asked for. The sweep loop carries them out: sweep/acts.py."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q, functions
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from reliable_jobs.columns import StampField


class Verb(models.TextChoices):
    REQUEUE = "requeue", pgettext_lazy("act", "requeue")
    CANCEL = "cancel", pgettext_lazy("act", "cancel")


class ActState(models.TextChoices):
    #: The sweep loop takes the next jobs at each round.
    RUNNING = "running", pgettext_lazy("act", "running")
    #: All jobs of the selection have been dealt with.
    DONE = "done", pgettext_lazy("act", "done")
    #: A person stopped it, or it was no longer allowed. What is done stays done.
    STOPPED = "stopped", pgettext_lazy("act", "stopped")


class BulkAct(models.Model):
    """One act: which jobs, what is done to them, how far it is.

    The set is the selection and whatever ended (waiting jobs: was enqueued) up to ``cutoff``: without it, requeued jobs
    that fail again would be taken again. ``cursor_at`` and ``cursor_id`` are the last job that was dealt with.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    verb = models.CharField(_("what is done"), max_length=10, choices=Verb.choices)
    #: As models/selection.py writes it.
    selection = models.TextField()
    #: Requeue: to this queue instead of each job's own.
    queue = models.CharField(max_length=255, blank=True, default="")
    #: Most jobs in a second; NULL: as fast as it goes.
    rate = models.FloatField(null=True, blank=True)
    #: Who asked. The user's primary key as text: with one, the permission is looked up before each step.
    actor = models.CharField(_("by whom"), max_length=255)
    user_id = models.CharField(max_length=255, blank=True, default="")
    state = models.CharField(_("state"), max_length=10, choices=ActState.choices, default=ActState.RUNNING)
    #: Why it stopped; or, while it runs, what went wrong last.
    note = models.TextField(blank=True, default="")
    #: How many jobs the page counted that asked; an act takes those that are there at its time.
    expected = models.PositiveIntegerField(null=True, blank=True)
    done = models.PositiveIntegerField(_("done"), default=0)
    skipped = models.PositiveIntegerField(_("skipped"), default=0)
    cutoff = StampField(_("asked for at"), db_default=functions.Now())  # noqa: TID251 - see StampField
    cursor_at = models.DateTimeField(null=True, blank=True)
    cursor_id = models.UUIDField(null=True, blank=True)
    #: When the last jobs were taken: a rate counts from there.
    stepped_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = _("bulk act")
        verbose_name_plural = _("bulk acts")
        indexes = (
            models.Index(fields=["cutoff"], name="reliable_act_running", condition=Q(state=ActState.RUNNING)),
            models.Index(fields=["cutoff"], name="reliable_act_cutoff"),
        )

    def __str__(self) -> str:
        return str(self.pk)[:8]  # in Django's admin log, too: no words of any language


class PauseKind(models.TextChoices):
    QUEUE = "queue", pgettext_lazy("pause", "queue")
    TASK = "task", pgettext_lazy("pause", "task")


class Pause(models.Model):
    """A queue or a task of which no job starts, until the row is deleted. Each claim looks: lifecycle/pauses.py."""

    kind = models.CharField(_("kind"), max_length=5, choices=PauseKind.choices)
    name = models.CharField(_("name"), max_length=255)
    actor = models.CharField(_("by whom"), max_length=255, blank=True, default="")
    why = models.TextField(_("why"), blank=True, default="")
    at = StampField(_("since"), db_default=functions.Now())  # noqa: TID251 - see StampField

    class Meta:
        verbose_name = _("pause")
        verbose_name_plural = _("pauses")
        constraints = (models.UniqueConstraint(fields=["kind", "name"], name="reliable_pause_of"),)

    def __str__(self) -> str:
        return self.name
