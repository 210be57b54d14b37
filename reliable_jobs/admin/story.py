"""In a sentence or two: where a job stands, and what happens next. For whoever is woken by it."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Sequence

from django.db import connections
from django.utils import timezone
from django.utils.formats import date_format

from reliable_jobs.compat.django import quoted
from reliable_jobs.conf import settings
from reliable_jobs.dispatch.receipt import Depth
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind, Reason, Status
from reliable_jobs.sweep.sweeper import next_check

ERROR_SHOWN = 200


@dataclasses.dataclass(frozen=True)
class Holder:
    """The open transaction that holds a job's row: a run, or for a moment the sweeper or a person's action."""

    backend: int
    since: datetime.datetime | None
    client: str | None


@dataclasses.dataclass(frozen=True)
class Story:
    text: str
    #: "good", "bad", "busy" or "idle"; the page's colour.
    tone: str


def holders(ids: Sequence[uuid.UUID], using: str) -> dict[uuid.UUID, Holder]:
    """Which of these rows an open transaction has locked, found without locking anything: a claim that met our lock,
    were it only for a millisecond, would drop its message as a duplicate. {} where the database can't say.

    A first atomic run shows nothing in its row until it ends; this is how one sees it. PostgreSQL keeps the locker's
    transaction id in ``xmax``, and a transaction holds a lock on its own id while it is open.
    """
    if not ids or connections[using].vendor != "postgresql":
        return {}
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"""SELECT job.id, held.pid, session.xact_start, session.client_addr::text
                FROM {quoted(connections[using], Job._meta.db_table)} job
                JOIN pg_locks held ON held.locktype = 'transactionid' AND held.transactionid = job.xmax
                    AND held.mode = 'ExclusiveLock' AND held.granted AND held.pid <> pg_backend_pid()
                LEFT JOIN pg_stat_activity session ON session.pid = held.pid
                WHERE job.id = ANY(%s)""",
            [list(ids)],
        )
        return {job_id: Holder(pid, since, client) for job_id, pid, since, client in cursor.fetchall()}


def tell(
    job: Job,
    now: datetime.datetime,
    holder: Holder | None = None,
    last: JobEvent | None = None,
    depth: Depth | None = None,
) -> Story:
    """The story of a row.

    Args:
        now: the database's time.
        holder: see :func:`holders`.
        last: the latest event of the job.
        depth: what the broker says of the job's queue, where it was asked and can say.
    """
    if job.status == Status.RUNNING:
        return _running(job, now, holder)
    if job.status == Status.WAITING:
        if holder is not None:
            return Story(f"Probably running: {_held(holder, now)}. It shows here when it ends.", "busy")
        return _waiting(job, now, last, depth)
    return _settled(job, now)


def _held(holder: Holder, now: datetime.datetime) -> str:
    since = f" since {moment(holder.since)} ({span(now - holder.since)})" if holder.since else ""
    client = f" from {holder.client}" if holder.client else ""
    return f"a transaction{client} has held its row{since}, database backend {holder.backend}"


def _running(job: Job, now: datetime.datetime, holder: Holder | None) -> Story:
    text = f"Running on {job.worker or 'an unknown worker'}, {ordinal(job.attempt)} attempt"
    if job.started_at is not None:
        text += f", first started {moment(job.started_at)} ({span(now - job.started_at)} ago)"
    lease = job.lease_at
    if holder is not None:
        text += f"; {_held(holder, now)}."
    elif lease is not None and lease <= now:
        text += (
            f". Its lease ended {span(now - lease)} ago: if the run is dead, the sweeper takes the job back at its "
            "next round; if the run still holds the row, it goes on."
        )
    elif lease is not None:
        text += f". Should it die, the sweeper takes the job back after its lease, in {span(lease - now)}."
    else:
        text += "."
    return Story(text, "busy")


def _waiting(job: Job, now: datetime.datetime, last: JobEvent | None, depth: Depth | None) -> Story:
    tone = "idle"
    if job.reason == Reason.PARKED:
        text = f"Waiting: no worker that it reached can run it ({_error(job)}). Offered again {_when(job.due_at, now)}"
        if job.deadline_at is not None:
            left = f"in {span(job.deadline_at - now)}" if job.deadline_at > now else "at the next offer"
            text += f"; parked as failed {left}, unless a worker with the code comes first"
        text, tone = f"{text}.", "bad"
    elif job.reason in (Reason.CRASH, Reason.TIME_LIMIT):
        text = (
            f"Waiting after a crash: {job.crashes} of its starts never reported, with {settings.MAX_CRASHES} it is "
            f"given up. Runs again, with care, {_due(job, now)}."
        )
        tone = "bad"
    elif job.reason == Reason.ERROR:
        text = f"Waiting for its {ordinal(job.attempt)} attempt, {_due(job, now)}; last error: {_error(job)}."
        tone = "bad"
    elif job.reason == Reason.INTERRUPTED:
        # None: it conflicted with other transactions.
        times = f" ({job.interruptions} of {settings.MAX_INTERRUPTIONS} times)" if job.interruptions else ""
        text = f"Waiting because its run was interrupted{times}: {_error(job)}. Runs again {_due(job, now)}."
        tone = "bad"
    elif job.reason == Reason.ASKED:
        text = f"Waiting because the task asked to run later: {_due(job, now)}."
    elif job.reason == Reason.REQUEUED:
        by = f" by {last.actor}" if last is not None and last.kind == EventKind.REQUEUE and last.actor else ""
        text = f"Requeued{by}: {_due(job, now)}."
    elif job.due_at is None:
        return Story("Held: it has replaced itself by other tasks, and ends with the last of them.", "idle")
    elif job.due_at > now:
        text = f"Scheduled: not before {moment(job.due_at)}, in {span(job.due_at - now)}."
    else:
        text = f"Waiting since {moment(job.due_at)} ({span(now - job.due_at)})."
    if job.sends and depth is not None and depth.exists and not depth.consumers:
        tone = "bad"
    return Story(text + _sent(job, now, last, depth) + _expiry(job), tone)


def _due(job: Job, now: datetime.datetime) -> str:
    return f"due {_when(job.due_at, now)}"


def _when(at: datetime.datetime | None, now: datetime.datetime) -> str:
    if at is None:
        return "when a later step is written"
    return f"in {span(at - now)}" if at > now else "now"


def _sent(job: Job, now: datetime.datetime, last: JobEvent | None, depth: Depth | None) -> str:
    """Where its message is."""
    if job.sends == 0:
        if job.due_at is None or job.due_at > now:
            return ""
        text = " Not sent yet: the sweeper publishes it at its next round."
        if (now - job.due_at).total_seconds() > 60:
            text += (
                " That should have happened by now: does beat or a worker run, does the broker answer, and does its "
                "queue take messages?"
            )
        return text
    look, ago, sent_at = "", "", None
    if job.check_at is not None:
        look = f" The sweeper looks again {_when(job.check_at, now)}."
        sent_at = job.check_at - datetime.timedelta(seconds=next_check(settings.GRACE, job.sends, settings.MAX_GRACE))
        ago = f" {span(now - sent_at)} ago"
    if last is not None and last.kind == EventKind.UNROUTABLE and (sent_at is None or last.at >= sent_at):
        return f" The broker returned its message: {last.detail}. Does queue {job.queue!r} exist?{look}"
    times = "" if job.sends == 1 else f", {job.sends} times in all"
    return f" Published{ago} to queue {job.queue!r}{times}. {consumed(job.queue, depth)}{look}"


def consumed(queue: str, depth: Depth | None) -> str:
    """Who consumes a queue, in a sentence."""
    if depth is None:
        return "Whether a worker consumes it is unknown: the broker did not say."
    if not depth.exists:
        return "The broker has no queue of that name. If it was deleted, its messages are lost and published again."
    if not depth.consumers:
        return f"No worker consumes it: start one with -Q {queue}."
    workers = "1 worker consumes it" if depth.consumers == 1 else f"{depth.consumers} workers consume it"
    return f"{workers}, and {depth.ready:,} message{'' if depth.ready == 1 else 's'} wait there."


def _expiry(job: Job) -> str:
    return f" Expires {moment(job.expires_at)}." if job.expires_at is not None else ""


def _settled(job: Job, now: datetime.datetime) -> Story:
    at = f" {moment(job.finished_at)} ({span(now - job.finished_at)} ago)" if job.finished_at else ""
    kept = _kept(job)
    if job.status == Status.SUCCEEDED:
        took = ""
        if job.started_at is not None and job.finished_at is not None and job.finished_at >= job.started_at:
            took = f", {span(job.finished_at - job.started_at)} after its first start"
        how = "Ended by its own wish (Ignore), without a result," if job.reason == Reason.IGNORED else "Succeeded"
        tries = f", {ordinal(job.attempt)} attempt" if job.failures else ""
        return Story(f"{how}{at}{took}{tries}.{kept}", "good")
    if job.status == Status.CANCELLED:
        how = "Revoked" if job.reason == Reason.REVOKED else "Cancelled"
        by = f" {job.error.removeprefix('cancelled ')}" if job.error.startswith("cancelled by ") else ""
        return Story(f"{how}{by}{at}. It does not run unless somebody requeues it.{kept}", "idle")
    if job.status == Status.SENT:
        text = f"Sent{at}: the broker has its message. Its task is not a reliable one, so nothing more is known here."
        return Story(text, "idle")
    if job.status == Status.EXPIRED:
        return Story(f"Expired{at}, before it could start. It does not run unless somebody requeues it.{kept}", "idle")
    return Story(f"{_failed(job)}{kept}", "bad")


def _failed(job: Job) -> str:
    if job.reason == Reason.PARKED:
        return f"Parked: {_error(job)}. Requeue it once the workers have the code."
    if job.reason in (Reason.CRASH, Reason.TIME_LIMIT):
        how = ", the last one killed by the hard time limit" if job.reason == Reason.TIME_LIMIT else ""
        return f"Failed: {job.crashes} starts never reported{how}. Requeue it when the cause is fixed."
    if job.reason == Reason.INTERRUPTED:
        # Too many times; or once, where its task has reruns = False: the error says which.
        return f"Failed: interrupted. {_error(job)}. Requeue it when the cause is fixed."
    if job.reason == Reason.UNROUTABLE:
        return f"Failed: no queue took its message ({_error(job)}). Requeue it when the queue exists."
    if job.reason == Reason.EARLIER_STEP:
        return f"Failed: {_error(job)}. Requeue that job when the cause is fixed; this one follows it."
    if job.reason == Reason.REJECTED:
        return f"Failed: the task rejected it ({_error(job)}). Requeue it when the cause is fixed."
    tries = f"{job.failures} attempt{'' if job.failures == 1 else 's'}"
    return f"Failed after {tries}: {_error(job)}. Nothing more happens by itself; requeue it when the cause is fixed."


def _kept(job: Job) -> str:
    days = settings.RETENTION.get(job.status)
    if days is None or job.finished_at is None:
        return ""
    return f" Kept until about {moment(job.finished_at + datetime.timedelta(days=days))[:10]}."


def _error(job: Job) -> str:
    return first_line(job.error) or "no error was recorded"


def first_line(text: str, limit: int = ERROR_SHOWN) -> str:
    """The first line of an error, without its full stop."""
    line = text.strip().split("\n", 1)[0].strip()
    return (line[: limit - 1] + "…") if len(line) > limit else line.removesuffix(".")


def moment(at: datetime.datetime | None) -> str:
    """A time in the page's time zone, to the second."""
    return "-" if at is None else date_format(timezone.localtime(at) if timezone.is_aware(at) else at, "Y-m-d H:i:s")


def span(delta: datetime.timedelta) -> str:
    """How long, in the two largest units worth reading."""
    seconds = int(abs(delta.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if hours < 1:
        return f"{minutes} min"
    if days < 2:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{days} days"


def ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
