"""A job, and which jobs one asks for.

A scope (``due``, ``overdue`` …) repeats the condition of its partial index word for word, so that PostgreSQL and
SQLite can use it; tests/test_models.py reads the plans.
"""

from __future__ import annotations

import uuid

from django.db import connections, models
from django.db.models import Case, F, Q, Value, When, functions
from django.utils.translation import gettext_lazy as _

from reliable_jobs.clock import Now
from reliable_jobs.columns import StampField, UniqueWhereGiven
from reliable_jobs.compat.django import locks_no_keys, skips_locked
from reliable_jobs.conf import RELEASE_LENGTH
from reliable_jobs.status import FINAL, OPEN, Reason, Status


class JobQuerySet(models.QuerySet["Job"]):
    def due(self) -> JobQuerySet:
        """Waiting, no message believed out, and the time has come."""
        return self.filter(status=Status.WAITING, sends=0, due_at__lte=Now())

    def overdue(self) -> JobQuerySet:
        """Waiting, published, and not settled by the time the sweeper was to look."""
        return self.filter(status=Status.WAITING, sends__gt=0, check_at__lte=Now())

    def sent_again(self) -> JobQuerySet:
        """Waiting, and published more than once."""
        return self.filter(status=Status.WAITING, sends__gt=1)

    def lost_runs(self) -> JobQuerySet:
        """Claims whose lease is over. Whether the run is dead the row lock tells: see :meth:`lock`."""
        return self.filter(status=Status.RUNNING, lease_at__lte=Now())

    def unfinished(self) -> JobQuerySet:
        return self.filter(status__in=[Status.WAITING, Status.RUNNING])

    def find(self, job_id: uuid.UUID) -> Job | None:
        """The row as committed, without its payload; None when there is none."""
        return self.defer("payload").filter(pk=job_id).first()

    def lock(self, *, wait: bool = False) -> JobQuerySet:
        """Lock what can be locked at once, skipping rows that a run holds; ``wait`` only for a row that none can hold.

        NO KEY UPDATE where there is one: FOR UPDATE would also skip a row on which somebody merely holds a foreign
        key's KEY SHARE lock. On SQLite the transaction's write lock stands in for the row's.
        """
        connection = connections[self.db]
        return self.select_for_update(
            skip_locked=skips_locked(connection) and not wait,
            no_key=locks_no_keys(connection),
        )

    def still(self, status: str) -> JobQuerySet:
        """Those with this status, of rows that are told by their ids.

        As a plain condition PostgreSQL holds it against the partial indexes. Where its statistics are of an hour when
        nothing waited, as they mostly are where a queue is healthy, it takes the index of all waiting rows to be empty,
        and reads it from end to end for each row (4 ms a settlement with 25,000 waiting, 40 with 300,000).
        """
        return self.filter(Case(When(status=status, then=Value(True)), default=Value(False)))


class Job(models.Model):
    """One requested run of a task: outbox row and receipt at once. Its id is the Celery task id.

    Only lifecycle/ changes ``status``. Rows are inserted by enqueue/insert.py; for messages that no outbox wrote by
    run/arrival.py and lifecycle/receipts.py; for steps of a workflow that wait or end without a call by
    held_places.py, later_steps.py and groups.py of lifecycle/. Between transitions only sweep/ changes ``sends`` and
    ``check_at``.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    task = models.CharField(max_length=255)
    queue = models.CharField(_("queue"), max_length=255)
    priority = models.SmallIntegerField(null=True, blank=True)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.WAITING)
    reason = models.CharField(max_length=12, choices=Reason.choices, default=Reason.NONE, blank=True)

    #: No claim succeeds before this time (database clock). NULL: held, until a step that has this id is written.
    due_at = models.DateTimeField(null=True, blank=True)
    #: When the sweeper next looks at a published row.
    check_at = models.DateTimeField(null=True, blank=True)
    #: Publishes since the row last became waiting; 0 = no message is believed out.
    sends = models.PositiveIntegerField(default=0)
    expires_at = models.DateTimeField(null=True, blank=True)
    #: Its task is paused: since then it is put ahead, until a resume; lifecycle/pauses.py.
    paused_at = models.DateTimeField(null=True, blank=True)

    #: Rises with every transition, never reset: what fences them.
    epoch = models.PositiveIntegerField(default=0)
    #: Rises when the content changes; a message of another version is stale.
    content_version = models.PositiveIntegerField(default=0)
    token = models.UUIDField(null=True, blank=True)
    lease_at = models.DateTimeField(null=True, blank=True)
    deadline_at = models.DateTimeField(null=True, blank=True)

    #: Attempts that are used up: by an error, or by a ``retry()`` that asked without one. See :attr:`attempt`.
    failures = models.PositiveIntegerField(default=0)
    #: Starts that never reported.
    crashes = models.PositiveIntegerField(default=0)
    #: Database failures during the function.
    interruptions = models.PositiveIntegerField(default=0)
    #: How often a person said "again".
    requeues = models.PositiveIntegerField(default=0)

    #: The idempotency key as given; ``live_key`` is the copy that the constraint watches, emptied when the key is free.
    key = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001 - NULLs are distinct, '' is not
    live_key = models.CharField(max_length=255, null=True, blank=True, editable=False)  # noqa: DJ001 - as above
    key_forever = models.BooleanField(default=False)

    #: The serialised arguments exactly as they go on the wire; nothing is re-encoded.
    payload = models.BinaryField()
    content_type = models.CharField(max_length=127)
    content_encoding = models.CharField(max_length=63)
    #: The rest of the rendered message as JSON text: see message/row_to_message.py. Text: jsonb refuses a NUL.
    envelope = models.TextField()

    root_id = models.UUIDField(null=True, blank=True)
    parent_id = models.UUIDField(null=True, blank=True)
    #: The task is not a reliable one: the row is an outbox entry only, and ends as ``sent``.
    relay_only = models.BooleanField(default=False, db_default=False)
    #: The job whose failure this one is told of: its worker calls the task with request, exception and traceback.
    errback_of = models.UUIDField(null=True, blank=True)
    #: The group that waits for this row. A settlement that writes successors hands the debt on to them.
    owes = models.UUIDField(null=True, blank=True)
    #: Orders the parts of a group: six hexadecimal digits for each level. See enqueue/owing.py.
    place = models.CharField(max_length=255, blank=True, default="", db_default="")

    #: JSON text of the return value; NULL for none, or ``ignore_result``.
    result = models.TextField(null=True, blank=True)  # noqa: DJ001 - "" is no JSON; NULL is "no result"
    error = models.TextField(blank=True, default="")
    #: The exception of the last attempt that failed, as message/exception_text.py writes it; NULL after a success.
    exception = models.TextField(null=True, blank=True)  # noqa: DJ001 - as result
    #: JSON text of what the run has started, as Celery's ``children`` of a result; NULL for nothing.
    subtasks = models.TextField(null=True, blank=True)  # noqa: DJ001 - as result
    #: Class of the exception of the last attempt that failed, with its module: :func:`db_errors.class_of`. "" after a
    #: success.
    error_class = models.CharField(max_length=255, blank=True, default="", db_default="")
    traceback = models.TextField(blank=True, default="")
    worker = models.CharField(max_length=255, blank=True, default="")
    #: Of the worker that has run it last: ``RELIABLE_JOBS["RELEASE"]`` there.
    release = models.CharField(max_length=RELEASE_LENGTH, blank=True, default="", db_default="")

    created_at = StampField(db_default=functions.Now(), editable=False)  # noqa: TID251 - see StampField
    #: Start of the first run that was recorded; the retry window counts from here.
    started_at = models.DateTimeField(null=True, blank=True)
    #: Start of the run that is under way, or was the last. NULL where the task function never began.
    run_started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        constraints = (UniqueWhereGiven(fields=["task", "live_key"], name="reliable_job_live_key"),)
        indexes = (
            # By queue: none stands behind the due jobs of another that is long, or that nobody takes from.
            models.Index(
                fields=["queue", "due_at"], name="reliable_job_unsent", condition=Q(status=Status.WAITING, sends=0)
            ),
            models.Index(fields=["queue", "due_at"], name="reliable_job_depth", condition=Q(status=Status.WAITING)),
            models.Index(
                fields=["queue", "check_at"],
                name="reliable_job_overdue",
                condition=Q(status=Status.WAITING, sends__gt=0),
            ),
            models.Index(
                fields=["queue"], name="reliable_job_sent_again", condition=Q(status=Status.WAITING, sends__gt=1)
            ),
            models.Index(fields=["lease_at"], name="reliable_job_lease", condition=Q(status=Status.RUNNING)),
            # Settled rows are those with a finished_at. "status IN (…)" says the same, but with parameters in the
            # query SQLite can't see that, and reads the whole table.
            models.Index(
                fields=["queue", "finished_at"], name="reliable_job_settled", condition=Q(finished_at__isnull=False)
            ),
            models.Index(
                fields=["status", "finished_at"], name="reliable_job_prune", condition=Q(finished_at__isnull=False)
            ),
            models.Index(fields=["created_at"], name="reliable_job_created"),
            # What fails now, by task, exception and release: failed, and waiting for another attempt.
            models.Index(
                fields=["finished_at", "task", "error_class", "release"],
                name="reliable_job_failed",
                condition=Q(status=Status.FAILED),
            ),
            models.Index(
                fields=["task", "error_class"],
                name="reliable_job_retrying",
                condition=Q(status=Status.WAITING, reason=Reason.ERROR),
            ),
            models.Index(fields=["task", "created_at"], name="reliable_job_task"),
            models.Index(fields=["parent_id"], name="reliable_job_parent", condition=Q(parent_id__isnull=False)),
            # Of workflows only: most jobs are their own roots.
            models.Index(
                fields=["root_id"], name="reliable_job_root", condition=Q(root_id__isnull=False) & ~Q(root_id=F("id"))
            ),
            models.Index(
                fields=["task"],
                name="reliable_job_paused",
                condition=Q(status=Status.WAITING, paused_at__isnull=False),
            ),
            # For keys that begin with something, too, whatever the database's collation is.
            models.Index(
                fields=["key"],
                name="reliable_job_key_prefix",
                condition=Q(key__isnull=False),
                opclasses=["varchar_pattern_ops"],
            ),
            # One for all of them: every index makes each statement on this table longer to plan, by some 0.01 ms.
            models.Index(
                fields=["created_at"],
                name="reliable_job_unusual",
                condition=Q(requeues__gt=0) | Q(crashes__gt=0) | Q(reason=Reason.PARKED),
            ),
            models.Index(
                fields=["owes", "place"],
                name="reliable_job_owes_open",
                condition=Q(owes__isnull=False, status__in=OPEN),
            ),
            models.Index(fields=["owes", "place"], name="reliable_job_owes", condition=Q(owes__isnull=False)),
            models.Index(
                fields=["check_at"],
                name="reliable_job_unreported",
                condition=Q(status=Status.SENT, owes__isnull=False),
            ),
        )
        permissions = (
            ("requeue_job", "Can requeue jobs"),
            ("cancel_job", "Can cancel jobs"),
            ("rerun_job", "Can run jobs again with other arguments"),
            ("stop_job", "Can stop running jobs"),
            ("pause_job", "Can pause and resume queues and tasks"),
        )

    def __str__(self) -> str:
        return f"{self.task}[{self.id}]"

    @property
    def attempt(self) -> int:
        """The number, from 1, of the attempt that runs or comes next."""
        return self.failures + 1

    @property
    def is_final(self) -> bool:
        return self.status in FINAL
