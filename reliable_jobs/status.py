"""The words for where a job stands, why, and which moves are allowed. Pure: no query, no clock.

``waiting → (running) → succeeded | failed | cancelled | expired``; the graph is drawn in docs/architecture.md.
"""

from __future__ import annotations

from django.db import models
from django.utils.translation import pgettext_lazy


class Status(models.TextChoices):
    #: Not settled and not visibly running. Written by enqueue, and by every way back: retry, snooze, replace,
    #: interruption, hand-back, rescue, requeue. Left by a committed claim, by the end of a first atomic run (which
    #: shows nothing here: the lock on the row says that it runs), by a cancel, by parking.
    WAITING = "waiting", pgettext_lazy("job", "waiting")
    #: A committed claim with token and lease: non-atomic tasks, and every run after a redelivery or a second send.
    #: Left by the run itself, or by the sweeper's rescue once the lease is over and nobody holds the row.
    RUNNING = "running", pgettext_lazy("job", "running")
    #: The task function returned; its writes, its follow-up jobs and this status were committed together. Final.
    SUCCEEDED = "succeeded", pgettext_lazy("job", "succeeded")
    #: Given up; ``reason``, ``error`` and the events say why. Final until a person requeues it.
    FAILED = "failed", pgettext_lazy("job", "failed")
    #: A person, ``revoke()`` or a purge said so. Final until a person requeues it.
    CANCELLED = "cancelled", pgettext_lazy("job", "cancelled")
    #: Its ``expires`` had passed before it could start. Final until a person requeues it.
    EXPIRED = "expired", pgettext_lazy("job", "expired")
    #: A message of a task that is not reliable, which a job or a workflow has started: the broker has confirmed it, and
    #: what becomes of it is its worker's business. Written by whoever published it, from waiting.
    SENT = "sent", pgettext_lazy("job", "sent")


FINAL = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED)
UNFINISHED = (Status.WAITING, Status.RUNNING)
#: What a group waits for. Lists, as the conditions of indexes are compared with what a migration says.
OPEN = ["waiting", "running", "sent"]

#: Every move that lifecycle/ may make. Of a single job ``transition`` asks, and anything else raises there; the UPDATEs
#: of many rows name in their condition where the rows stand.
TRANSITIONS: dict[str, tuple[str, ...]] = {
    Status.WAITING: (Status.WAITING, Status.RUNNING, Status.SENT, *FINAL),
    Status.RUNNING: (Status.WAITING, Status.SENT, *FINAL),
    Status.SUCCEEDED: (Status.WAITING,),
    Status.FAILED: (Status.WAITING,),
    Status.CANCELLED: (Status.WAITING,),
    Status.EXPIRED: (Status.WAITING,),
    #: Requeued by a person, or met by a worker in which its task is a reliable one. Failed, where it keeps the place of
    #: a step that will not come.
    Status.SENT: (Status.WAITING, Status.FAILED),
}

#: What Celery calls it, for result backends and ``AsyncResult.state``.
CELERY_STATES: dict[str, str] = {
    Status.WAITING: "PENDING",
    Status.RUNNING: "STARTED",
    Status.SUCCEEDED: "SUCCESS",
    Status.FAILED: "FAILURE",
    Status.CANCELLED: "REVOKED",
    Status.EXPIRED: "REVOKED",
    Status.SENT: "PENDING",
}


#: Attribute of a Celery ``Ignore``: the task event that closes the delivery for monitors such as Flower.
CLOSES = "reliable_closes"


class Reason(models.TextChoices):
    """Why a row is where it is, where the status alone does not say."""

    NONE = "", "-"
    #: The task function raised; waiting for another attempt, or failed because none is left.
    ERROR = "error", pgettext_lazy("reason", "error")
    #: ``retry()`` without an exception, a Reject(requeue=True), or a snooze: the task itself asked to run later.
    ASKED = "asked", pgettext_lazy("reason", "asked to run later")
    #: The process that ran it died without reporting (signal, OOM kill, power); bounded by MAX_CRASHES.
    CRASH = "crash", pgettext_lazy("reason", "crashed")
    #: As crash, and the killer was Celery's hard time limit.
    TIME_LIMIT = "time limit", pgettext_lazy("reason", "hard time limit")
    #: The database failed during the function: bounded by MAX_INTERRUPTIONS, after MAX_CONFLICTS for deadlocks.
    INTERRUPTED = "interrupted", pgettext_lazy("reason", "interrupted")
    #: No code here could run it: unknown task, arguments that do not fit, undecodable payload.
    PARKED = "parked", pgettext_lazy("reason", "parked")
    #: The task function raised ``Reject(requeue=False)``.
    REJECTED = "rejected", pgettext_lazy("reason", "rejected")
    #: The task function raised ``Ignore``: it ended by its own wish, without a result.
    IGNORED = "ignored", pgettext_lazy("reason", "ignored")
    #: Cancelled through Celery's revoke or terminate.
    REVOKED = "revoked", pgettext_lazy("reason", "revoked")
    #: Requeued by a person and not run since.
    REQUEUED = "requeued", pgettext_lazy("reason", "requeued")
    #: ``replace()``: other tasks do its work, and the last of them has its id.
    REPLACED = "replaced", pgettext_lazy("reason", "replaced by other tasks")
    #: A step of a chain that will not come: an earlier step has failed, or was cancelled.
    EARLIER_STEP = "earlier step", pgettext_lazy("reason", "an earlier step did not succeed")
    #: A message of a task that is not reliable, which the broker could not route.
    UNROUTABLE = "unroutable", pgettext_lazy("reason", "unroutable")


class GroupState(models.TextChoices):
    """Where the header of a chord stands."""

    #: Parts are unfinished, or nobody has looked since the last one ended.
    OPEN = "open", pgettext_lazy("group", "open")
    #: All parts succeeded, and the body has been written.
    DONE = "done", pgettext_lazy("group", "done")
    #: A part did not succeed. A requeue of that part opens the group again.
    FAILED = "failed", pgettext_lazy("group", "failed")
    #: Its body was revoked before it was written.
    CANCELLED = "cancelled", pgettext_lazy("group", "cancelled")


class EventKind(models.TextChoices):
    """What a person will ask about later. A plain success writes no event."""

    FAILURE = "failure", pgettext_lazy("event", "failure")
    CRASH = "crash", pgettext_lazy("event", "crash")
    TIME_LIMIT = "time limit", pgettext_lazy("event", "hard time limit")
    INTERRUPTION = "interruption", pgettext_lazy("event", "interruption")
    RESCUE = "rescue", pgettext_lazy("event", "rescue")
    REQUEUE = "requeue", pgettext_lazy("event", "requeue")
    CANCEL = "cancel", pgettext_lazy("event", "cancel")
    EXPIRY = "expiry", pgettext_lazy("event", "expiry")
    PARKED = "parked", pgettext_lazy("event", "parked")
    UNROUTABLE = "unroutable", pgettext_lazy("event", "unroutable")
    #: A person ran it again with other arguments, as a new job. Written to both.
    COPY = "copy", pgettext_lazy("event", "run with other arguments")
    #: A person asked the workers to stop its run.
    STOP = "stop", pgettext_lazy("event", "stop asked for")


class ProcessKind(models.TextChoices):
    """What a process is there for."""

    WORKER = "worker", pgettext_lazy("process", "worker")
    BEAT = "beat", pgettext_lazy("process", "beat")
    RELAY = "relay", pgettext_lazy("process", "relay")


class Ending(models.TextChoices):
    """How a run has ended, as the statistics count it."""

    SUCCEEDED = "succeeded", pgettext_lazy("job", "succeeded")
    FAILED = "failed", pgettext_lazy("job", "failed")
    CANCELLED = "cancelled", pgettext_lazy("job", "cancelled")
    EXPIRED = "expired", pgettext_lazy("job", "expired")
    #: It failed, or was interrupted, and the job runs again.
    RETRIED = "retried", pgettext_lazy("job", "retried")
    #: Its process died, and the job runs again.
    CRASHED = "crashed", pgettext_lazy("job", "crashed")
