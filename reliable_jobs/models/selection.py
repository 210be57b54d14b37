"""Which jobs a person means: the filters of the admin's list, the options of the commands, the set of a bulk act.

All three use one description, so that the jobs which a page counts are those that its button takes. Every condition
repeats that of an index of jobs.py, or narrows one that does.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import Exists, OuterRef
from django.utils.translation import gettext_noop

from reliable_jobs.models.history import JobEvent
from reliable_jobs.models.jobs import Job, JobQuerySet
from reliable_jobs.models.moments import read_moment, refused
from reliable_jobs.status import FINAL, EventKind, Reason, Status


def _ended(rows: JobQuerySet, status: str) -> JobQuerySet:
    return rows.filter(status=status, finished_at__isnull=False)


def _crashed(rows: JobQuerySet) -> JobQuerySet:
    # A run with a committed claim counts its start as a crash until it reports; that one is alive.
    return rows.filter(crashes__gt=0).exclude(status=Status.RUNNING, crashes=1)


#: Which states there are to choose from. Each repeats the condition of a partial index word for word, or is an equality
#: on the first column of one.
STATES: dict[str, Callable[[JobQuerySet], JobQuerySet]] = {
    "failed": lambda rows: _ended(rows, Status.FAILED),
    "retrying": lambda rows: rows.filter(status=Status.WAITING, reason=Reason.ERROR),
    "waiting": lambda rows: rows.filter(status=Status.WAITING),
    "running": lambda rows: rows.filter(status=Status.RUNNING),
    "requeued": lambda rows: rows.filter(requeues__gt=0),
    "crashed": _crashed,
    "parked": lambda rows: rows.filter(reason=Reason.PARKED),
    "succeeded": lambda rows: _ended(rows, Status.SUCCEEDED),
    "cancelled": lambda rows: _ended(rows, Status.CANCELLED),
    "expired": lambda rows: _ended(rows, Status.EXPIRED),
}


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is empty or None leaves no job out."""

    #: A name of :data:`STATES`.
    state: str = ""
    task: str = ""
    queue: str = ""
    #: The class of the exception of the last attempt, as ``Job.error_class`` has it.
    error: str = ""
    release: str = ""
    #: Of final jobs, when they ended; of others, when they were enqueued. ``since`` is included, ``until`` is not.
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    #: The beginning of the idempotency key.
    key: str = ""
    #: The beginning of the id, in hexadecimal digits, with or without dashes.
    id: str = ""
    #: Jobs that this bulk act has requeued and that have not started since.
    act: str = ""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a value that can't be one, in words for the person who typed it.
        """
        if self.state and self.state not in STATES:
            raise refused(
                gettext_noop("No state is called '%(state)s'; there are %(states)s."),
                state=self.state,
                states=", ".join(STATES),
            )
        digits = self.id.replace("-", "").lower()
        if (self.id and not digits) or len(digits) > 32 or set(digits) - set("0123456789abcdef"):
            raise refused(gettext_noop("'%(id)s' is not the beginning of a job's id."), id=self.id)
        if self.act:
            try:
                uuid.UUID(self.act)
            except ValueError:
                raise refused(gettext_noop("'%(id)s' is not the id of an act."), id=self.act) from None
        for name in ("task", "queue", "error", "release", "key"):
            if "\x00" in getattr(self, name):
                raise refused(gettext_noop("'%(field)s' holds a NUL character."), field=name)
        if (self.error or self.release) and self.state != "failed" and self.since is None:
            # Their index holds failed jobs; of others a range of time has to bound what is read.
            raise refused(
                gettext_noop("To choose by error or release, choose the state 'failed' or a time to begin with.")
            )

    @property
    def is_of_final_jobs(self) -> bool:
        return self.state in [str(status) for status in FINAL]

    @property
    def time_column(self) -> str:
        """What ``since`` and ``until`` are compared with, and by what the jobs are ordered."""
        return "finished_at" if self.is_of_final_jobs else "created_at"

    @property
    def order(self) -> str:
        """The column by which a list shows them; "-" before it: the latest first."""
        if self.is_of_final_jobs:
            return "-finished_at"
        return "due_at" if self.state in ("waiting", "retrying") else "-created_at"

    def rows(self, using: str) -> JobQuerySet:
        """The jobs of a database, without an order."""
        return self.narrow(Job.objects.using(using).order_by())

    def narrow(self, rows: JobQuerySet) -> JobQuerySet:
        """Those of the rows that are meant."""
        if self.state:
            rows = STATES[self.state](rows)
        exact = {"task": self.task, "queue": self.queue, "error_class": self.error, "release": self.release}
        rows = rows.filter(**{column: value for column, value in exact.items() if value})
        if self.since is not None:
            rows = rows.filter(**{f"{self.time_column}__gte": self.since})
        if self.until is not None:
            rows = rows.filter(**{f"{self.time_column}__lt": self.until})
        if self.key:
            rows = rows.filter(key__startswith=self.key)
        if self.id:
            digits = self.id.replace("-", "")
            rows = rows.filter(pk__range=(uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))))
        if self.act:
            again = JobEvent.objects.using(rows.db).filter(kind=EventKind.REQUEUE)
            later = again.filter(job_id=OuterRef("job_id"), pk__gt=OuterRef("pk"))
            requeued = again.filter(~Exists(later), act_id=uuid.UUID(self.act))
            rows = rows.filter(pk__in=requeued.values("job_id"), status=Status.WAITING, reason=Reason.REQUEUED)
        return rows

    def as_dict(self) -> dict[str, str]:
        """What is chosen, as text: for an address, or to be stored."""
        chosen = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return {
            name: value.isoformat() if isinstance(value, datetime.datetime) else value for name, value in chosen.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Selection:
        """
        Raises:
            ValueError: see the class; or a time that can't be read, see :func:`read_moment`.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {name: str(value).strip() for name, value in values.items() if name in known and value}
        for name in ("since", "until"):
            if name in chosen:
                chosen[name] = read_moment(chosen[name])
        return cls(**chosen)

    def as_text(self) -> str:
        return json.dumps(self.as_dict(), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Selection:
        """
        Raises:
            ValueError: as :meth:`from_dict`.
        """
        return cls.from_dict(json.loads(text))
