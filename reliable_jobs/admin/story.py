"""In a sentence or two: where a job stands, and what happens next. For whoever is woken by it."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from reliable_jobs.admin import ended
from reliable_jobs.admin.ended import error as _error
from reliable_jobs.admin.holders import Holder
from reliable_jobs.admin.wording import distance, first_line, moment, number, span
from reliable_jobs.conf import settings
from reliable_jobs.dispatch.answers import Depth
from reliable_jobs.models import Job, JobEvent, Pause, PauseKind
from reliable_jobs.presence import Consumers
from reliable_jobs.status import EventKind, Reason, Status
from reliable_jobs.sweep.sends import next_check


@dataclasses.dataclass(frozen=True)
class Story:
    text: str
    #: "good", "bad", "busy" or "idle"; the page's colour.
    tone: str


def tell(
    job: Job,
    now: datetime.datetime,
    holder: Holder | None = None,
    last: JobEvent | None = None,
    depth: Depth | None = None,
    pause: Pause | None = None,
    consumers: Consumers | None = None,
) -> Story:
    """The story of a row.

    Args:
        now: the database's time.
        holder: see :mod:`reliable_jobs.admin.holders`.
        last: the latest event of the job.
        depth: what the broker says of the job's queue, where it was asked and can say.
        pause: what holds the job back, if anything does.
    """
    if job.status == Status.RUNNING:
        return _story("busy", *_running(job, now, holder))
    if job.status == Status.WAITING:
        if holder is not None:
            return _story("busy", _("Probably running; it shows here when it ends."), *_held(holder, now))
        if pause is not None:
            return _story("idle", *_paused(job, now, pause))
        return _waiting(job, now, last, depth, consumers)
    return _settled(job, now)


def _story(tone: str, *sentences: str) -> Story:
    return Story(" ".join(filter(None, sentences)), tone)


def _held(holder: Holder, now: datetime.datetime) -> Iterator[str]:
    if holder.since is not None:
        values = {"at": moment(holder.since), "span": span(now - holder.since)}
        yield _("A transaction has held its row since %(at)s (%(span)s).") % values
    else:
        yield _("A transaction holds its row.")
    if holder.client:
        yield _("It is database backend %(pid)d, from %(client)s.") % {"pid": holder.backend, "client": holder.client}
    else:
        yield _("It is database backend %(pid)d.") % {"pid": holder.backend}


def _running(job: Job, now: datetime.datetime, holder: Holder | None) -> Iterator[str]:
    values = {"worker": job.worker, "number": job.attempt}
    if job.worker:
        yield _("Running on %(worker)s, attempt %(number)d.") % values
    else:
        yield _("Running on an unknown worker, attempt %(number)d.") % values
    if job.started_at is not None:
        values = {"at": moment(job.started_at), "span": distance(now - job.started_at)}
        yield _("First started %(at)s (%(span)s ago).") % values
    if holder is not None:
        yield from _held(holder, now)
    elif job.lease_at is not None and job.lease_at <= now:
        yield _(
            "Its lease ended %(span)s ago: if the run is dead, the sweeper takes the job back at its next round; if "
            "the run still holds the row, it goes on."
        ) % {"span": distance(now - job.lease_at)}
    elif job.lease_at is not None:
        yield _("Should it die, the sweeper takes the job back after its lease, in %(span)s.") % {
            "span": distance(job.lease_at - now)
        }


def _waiting(
    job: Job, now: datetime.datetime, last: JobEvent | None, depth: Depth | None, consumers: Consumers | None
) -> Story:
    why = _why_waiting(job, now, last)
    if why is None:
        if job.due_at is None:
            return Story(_("Held: it has replaced itself by other tasks, and ends with the last of them."), "idle")
        at, left = moment(job.due_at), job.due_at - now
        if job.due_at > now:
            why = [_("Scheduled: not before %(at)s, in %(span)s.") % {"at": at, "span": distance(left)}]
        else:
            why = [_("Waiting since %(at)s (%(span)s).") % {"at": at, "span": span(left)}]
    if depth is not None and depth.exists:
        alone = not depth.consumers
    else:
        alone = consumers is not None and not consumers.now and consumers.last is not None
    bad = job.reason in _BAD or (job.sends and alone)
    return _story("bad" if bad else "idle", *why, *_sent(job, now, last, depth, consumers), _expiry(job))


#: Reasons for which a waiting job is worth a look.
_BAD = (Reason.PARKED, Reason.CRASH, Reason.TIME_LIMIT, Reason.ERROR, Reason.INTERRUPTED)


def _why_waiting(job: Job, now: datetime.datetime, last: JobEvent | None) -> list[str] | None:
    """Why it waits, and until when; None where nothing has happened yet."""
    if job.reason == Reason.PARKED:
        found = [_("Waiting: no worker that it reached can run it (%(error)s).") % {"error": _error(job)}]
        found.append(_due(job, now))
        if job.deadline_at is not None and job.deadline_at > now:
            found.append(
                _("It is parked as failed in %(span)s, unless a worker with the code comes first.")
                % {"span": distance(job.deadline_at - now)}
            )
        elif job.deadline_at is not None:
            found.append(_("It is parked as failed at the next offer, unless a worker with the code comes first."))
        return found
    if job.reason in (Reason.CRASH, Reason.TIME_LIMIT):
        text = ngettext(
            "Waiting after a crash: %(count)d of its starts never reported, with %(limit)d it is given up.",
            "Waiting after a crash: %(count)d of its starts never reported, with %(limit)d it is given up.",
            job.crashes,
        )
        text %= {"count": job.crashes, "limit": settings.MAX_CRASHES}
        return [text, _("It runs again with care."), _due(job, now)]
    if job.reason == Reason.ERROR:
        values = {"number": job.attempt, "error": _error(job)}
        return [_("Waiting for attempt %(number)d; last error: %(error)s.") % values, _due(job, now)]
    if job.reason == Reason.INTERRUPTED:
        if not job.interruptions:  # it conflicted with other transactions
            text = _("Waiting because its run was interrupted: %(error)s.") % {"error": _error(job)}
        else:
            text = _("Waiting because its run was interrupted (%(count)d of %(limit)d times): %(error)s.") % {
                "count": job.interruptions,
                "limit": settings.MAX_INTERRUPTIONS,
                "error": _error(job),
            }
        return [text, _due(job, now)]
    if job.reason == Reason.ASKED:
        return [_("Waiting because the task asked to run later."), _due(job, now)]
    if job.reason == Reason.REQUEUED:
        if last is not None and last.kind == EventKind.REQUEUE and last.actor:
            return [_("Requeued by %(actor)s.") % {"actor": last.actor}, _due(job, now)]
        return [_("Requeued."), _due(job, now)]
    return None


def _due(job: Job, now: datetime.datetime) -> str:
    if job.due_at is None:
        return _("Due when a later step is written.")
    return _("Due in %(span)s.") % {"span": distance(job.due_at - now)} if job.due_at > now else _("Due now.")


def _paused(job: Job, now: datetime.datetime, pause: Pause) -> Iterator[str]:
    of_queue = pause.kind == PauseKind.QUEUE
    values = {"name": pause.name, "actor": pause.actor, "at": moment(pause.at), "span": span(now - pause.at)}
    if of_queue and pause.actor:
        yield _("Waiting: queue '%(name)s' is paused by %(actor)s since %(at)s (%(span)s).") % values
    elif of_queue:
        yield _("Waiting: queue '%(name)s' is paused since %(at)s (%(span)s).") % values
    elif pause.actor:
        yield _("Waiting: task '%(name)s' is paused by %(actor)s since %(at)s (%(span)s).") % values
    else:
        yield _("Waiting: task '%(name)s' is paused since %(at)s (%(span)s).") % values
    if pause.why:
        yield _("Why: %(why)s.") % {"why": first_line(pause.why)}
    yield _("It runs when the queue is resumed.") if of_queue else _("It runs when the task is resumed.")
    if job.paused_at is None and job.due_at is not None and job.due_at > now:
        yield _("Not before %(at)s.") % {"at": moment(job.due_at)}
    yield _expiry(job)


def _sent(
    job: Job, now: datetime.datetime, last: JobEvent | None, depth: Depth | None, consumers: Consumers | None
) -> Iterator[str]:
    """Where its message is."""
    if job.sends == 0:
        if job.due_at is None or job.due_at > now:
            return
        yield _("Not sent yet: the sweeper publishes it at its next round.")
        if (now - job.due_at).total_seconds() > 60:
            yield _(
                "That should have happened by now: does beat or a worker run, does the broker answer, and does its "
                "queue take messages?"
            )
        return
    sent_at = None
    if job.check_at is not None:
        sent_at = job.check_at - datetime.timedelta(seconds=next_check(settings.GRACE, job.sends, settings.MAX_GRACE))
    if last is not None and last.kind == EventKind.UNROUTABLE and (sent_at is None or last.at >= sent_at):
        values = {"detail": last.detail, "queue": job.queue}
        yield _("The broker returned its message: %(detail)s. Does queue '%(queue)s' exist?") % values
    else:
        if sent_at is None:
            yield _("Published to queue '%(queue)s'.") % {"queue": job.queue}
        else:
            values = {"queue": job.queue, "span": distance(now - sent_at)}
            yield _("Published %(span)s ago to queue '%(queue)s'.") % values
        if job.sends > 1:
            text = ngettext("It was published %(count)d time.", "It was published %(count)d times in all.", job.sends)
            yield text % {"count": job.sends}
        yield consumed(job.queue, depth, consumers)
    if job.check_at is not None and job.check_at > now:
        yield _("The sweeper looks again in %(span)s.") % {"span": distance(job.check_at - now)}
    elif job.check_at is not None:
        yield _("The sweeper looks again now.")


def consumed(queue: str, depth: Depth | None, consumers: Consumers | None = None) -> str:
    """Who consumes a queue, in a sentence or two.

    Args:
        depth: what the broker says.
        consumers: what the workers say.
    """
    if depth is None and consumers is not None and consumers.now:
        values = {"names": ", ".join(one.name for one in consumers.now[:3])}
        if len(consumers.now) > 3:
            return _("The broker did not say who consumes it; %(names)s and others did when last seen.") % values
        return _("The broker did not say who consumes it; %(names)s did when last seen.") % values
    missing = ""
    if depth is not None and not depth.exists:
        missing = _(
            "The broker has no queue of that name. If it was deleted, its messages are lost and published again."
        )
    if not (depth and depth.consumers) and consumers is not None and consumers.last is not None and not consumers.now:
        values = {"name": consumers.last.name, "at": moment(consumers.last.seen_at), "queue": queue}
        last = (
            _("No worker consumes it; the last one, %(name)s, was seen %(at)s. Start one with -Q %(queue)s.") % values
        )
        return f"{missing} {last}".strip()
    if depth is None:
        return _("Whether a worker consumes it is unknown: the broker did not say.")
    if missing:
        return missing
    if not depth.consumers:
        return _("No worker consumes it: start one with -Q %(queue)s.") % {"queue": queue}
    workers = ngettext("%(count)s worker consumes it.", "%(count)s workers consume it.", depth.consumers)
    messages = ngettext("%(count)s message waits there.", "%(count)s messages wait there.", depth.ready)
    return f"{workers % {'count': number(depth.consumers)}} {messages % {'count': number(depth.ready)}}"


def _expiry(job: Job) -> str:
    return _("Expires %(at)s.") % {"at": moment(job.expires_at)} if job.expires_at is not None else ""


def _settled(job: Job, now: datetime.datetime) -> Story:
    if job.status == Status.FAILED:
        return _story("bad", ended.failed(job), ended.kept(job))
    at = ended.when(job, now)
    if job.status == Status.SUCCEEDED:
        return _story("good", ended.succeeded(job), at, ended.attempt(job), ended.kept(job))
    if job.status == Status.SENT:
        nothing = _("Its task is not a reliable one, so nothing more is known here.")
        return _story("idle", _("Sent: the broker has its message."), at, nothing)
    how = _("Expired before it could start.") if job.status == Status.EXPIRED else ended.cancelled(job)
    return _story("idle", how, at, _("It does not run unless somebody requeues it."), ended.kept(job))
