"""The app's landing page: what is wrong now, what fails, how deep the queues are. At most ten queries, each bounded by
what is unfinished or has failed lately."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from django.db.models import Q, Sum
from django.urls import reverse
from django.utils.formats import number_format
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from reliable_jobs import lifecycle, presence
from reliable_jobs.admin import answers, charts
from reliable_jobs.admin.chosen import selectable
from reliable_jobs.admin.wording import distance, first_line, moment, number, span
from reliable_jobs.conf import settings
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.health import figures
from reliable_jobs.models import Pause, PauseKind, Stat
from reliable_jobs.models.statistics import MINUTE
from reliable_jobs.presence import Seen
from reliable_jobs.status import Ending, ProcessKind

#: Seconds for which a due job may wait before the page calls that wrong.
LATE = 300.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong, in a sentence, and what to do."""

    text: str
    #: The address of a page that says more; "" for none.
    link: str = ""


class Failing(figures.Failing):
    """Failures of one kind, as a row of the page."""

    @property
    def trend(self) -> str:
        """Whether the last hour had more than an hour's share of the day."""
        if not self.failed:
            return pgettext("job", "retrying")
        usual = self.failed / 24
        if self.lately > 2 * usual:
            return pgettext("trend", "rising")
        return pgettext("trend", "falling") if self.lately < usual / 2 else pgettext("trend", "steady")

    @property
    def query(self) -> str:
        """The filters of the list that choose the failed ones; "" where they can't be chosen."""
        if not all(selectable(name) for name in (self.task, self.queue) if name is not None):
            return ""
        chosen = {"state": "failed", "task": self.task, "error": self.error, "release": self.release}
        chosen["queue"] = self.queue or ""
        chosen["since"] = self.since.isoformat() if self.since else ""
        return urlencode({name: value for name, value in chosen.items() if value})


class Depth(figures.Depth):
    """How a queue stands, as a row of the page."""

    @property
    def oldest_text(self) -> str:
        return span(self.oldest) if self.oldest else "-"

    @property
    def selectable(self) -> bool:
        """Whether the list can be filtered by it."""
        return selectable(self.queue)

    @property
    def drained_in(self) -> str:
        """How long it takes to work off what waits, at the rate of the last minutes."""
        if not self.waiting:
            return "-"
        if not self.rate:
            return _("never at this rate") if self.rate == 0 else "-"
        return span(datetime.timedelta(seconds=self.waiting / self.rate))


@dataclasses.dataclass
class Overview:
    now: datetime.datetime
    problems: list[Problem]
    #: Who is there, in a sentence.
    alive: str
    failing: list[Failing]
    queues: list[Depth]
    period: charts.Period
    points: list[charts.Point]
    tasks: list[charts.Row]
    #: Which task is slow, in a sentence.
    slowest: str


def look(using: str, period: str = "1h") -> Overview:
    """Read it all.

    Args:
        period: of the charts, a name of :data:`charts.PERIODS`; another one means the first.

    Raises:
        django.db.Error: the database could not be read.
    """
    processes = presence.processes(using)
    now = presence.clock(processes)
    living = [one for one in processes if one.works]
    pauses = lifecycle.paused(using)
    of_queues = [pause for pause in pauses if pause.kind == PauseKind.QUEUE]
    queues = [
        Depth(**vars(one)) for one in figures.depths(using, now, living, of_queues, figures.ended_lately(using, now))
    ]
    failing = sorted((Failing(**vars(one)) for one in figures.failing(using, now)), key=lambda one: -one.lately)
    problems = [
        *(_of_processes(living) if settings.PRESENCE_INTERVAL else ()),
        *_of_failing(failing),
        *_of_queues(queues, processes),
        *(_of_pause(pause) for pause in pauses if pause.kind == PauseKind.TASK),
        *_of_broker(),
        *_of_failure_rate(using, now),
    ]
    shown = charts.period_of(period)
    points = charts.points(using, shown, now)
    tasks = charts.rows(using, "task", shown, now, most=charts.TASKS_SHOWN)
    alive = answers.alive(living) if settings.PRESENCE_INTERVAL else ""
    return Overview(now, problems, alive, failing, queues, shown, points, tasks, answers.slowest(tasks))


# --- what is wrong ----------------------------------------------------------------------------------------------------


def _of_processes(living: list[Seen]) -> list[Problem]:
    kinds = {process.kind for process in living}
    link = reverse("admin:reliable_jobs_process_changelist")
    if not kinds:
        return [Problem(_("No worker, beat or relay is alive. Nothing runs, and nothing is swept: start them."), link)]
    if ProcessKind.WORKER not in kinds:
        return [Problem(_("No worker is alive: start one, celery -A PROJECT worker."), link)]
    if not kinds & {ProcessKind.BEAT, ProcessKind.RELAY}:
        text = _("Neither beat nor a relay is alive. Workers sweep too, but later: start celery -A PROJECT beat.")
        return [Problem(text, link)]
    return []


def _of_failing(failing: list[Failing]) -> list[Problem]:
    link = reverse("admin:reliable_jobs_job_changelist")
    return [Problem(answers.failing(kind, failing), f"{link}?{kind.query}") for kind in answers.worst(failing)]


def _of_queues(queues: list[Depth], processes: list[Seen]) -> list[Problem]:
    found = []
    for depth in queues:
        link = (
            f"{reverse('admin:reliable_jobs_job_changelist')}?{urlencode({'state': 'waiting', 'queue': depth.queue})}"
        )
        if depth.paused is not None:
            found.append(_of_pause(depth.paused, depth.waiting, link))
        elif depth.waiting and not depth.consumers and settings.PRESENCE_INTERVAL:
            found.append(Problem(_without_worker(depth, processes), link))
        elif depth.oldest is not None and depth.oldest.total_seconds() > LATE:
            text = _(
                "The oldest due job of queue '%(queue)s' has waited for %(span)s. Add workers, or look at what they "
                "are busy with."
            )
            found.append(Problem(text % {"queue": depth.queue, "span": distance(depth.oldest)}, link))
    return found


def said_of_pause(pause: Pause) -> str:
    """Who paused what, since when and why."""
    values = {"name": pause.name, "actor": pause.actor, "at": moment(pause.at)}
    if pause.kind == PauseKind.QUEUE and pause.actor:
        sentences = [_("Queue '%(name)s' is paused by %(actor)s since %(at)s.") % values]
    elif pause.kind == PauseKind.QUEUE:
        sentences = [_("Queue '%(name)s' is paused since %(at)s.") % values]
    elif pause.actor:
        sentences = [_("Task '%(name)s' is paused by %(actor)s since %(at)s.") % values]
    else:
        sentences = [_("Task '%(name)s' is paused since %(at)s.") % values]
    if pause.why:
        sentences.append(_("Why: %(why)s.") % {"why": first_line(pause.why)})
    return " ".join(sentences)


def _of_pause(pause: Pause, waiting: int | None = None, link: str = "") -> Problem:
    """It is no fault, but whoever looks for a job that does not run must know it."""
    sentences = [said_of_pause(pause)]
    if waiting is not None:
        text = ngettext("%(count)s job waits there.", "%(count)s jobs wait there.", waiting)
        sentences.append(text % {"count": number(waiting)})
    if not link:
        chosen = urlencode({"state": "waiting", "task": pause.name})
        link = f"{reverse('admin:reliable_jobs_job_changelist')}?{chosen}"
    return Problem(" ".join(sentences), link)


def _without_worker(depth: Depth, processes: list[Seen]) -> str:
    """That nobody consumes a queue, who did last, and what to do."""
    sentences = [_("No worker consumes queue '%(queue)s'.")]
    last = next((one for one in processes if depth.queue in one.queues), None)  # the last seen comes first
    if last is not None:
        sentences = [_("No worker consumes queue '%(queue)s'; the last one, %(name)s, was seen at %(at)s.")]
    sentences.append(ngettext("%(count)s job waits there.", "%(count)s jobs wait there.", depth.waiting))
    sentences.append(_("Start one with -Q %(queue)s."))
    values = {"queue": depth.queue, "count": number(depth.waiting)}
    values |= {"name": last.name, "at": moment(last.seen_at)} if last is not None else {}
    return " ".join(sentence % values for sentence in sentences)


def _of_broker() -> list[Problem]:
    if publisher().breaker_open:
        text = _(
            "This process could not reach the broker lately, and leaves its jobs to the sweeper: look at the broker."
        )
        return [Problem(text)]
    return []


def _of_failure_rate(using: str, now: datetime.datetime) -> list[Problem]:
    """Whether more fails in this hour than in the same hour of yesterday."""
    hour, day = datetime.timedelta(hours=1), datetime.timedelta(days=1)
    rows = Stat.objects.using(using).filter(span=MINUTE, ending__in=[Ending.SUCCEEDED, Ending.FAILED])
    today, yesterday = Q(at__gte=now - hour), Q(at__gte=now - day - hour, at__lt=now - day)
    failed = Q(ending=Ending.FAILED)
    found: Any = rows.filter(today | yesterday).aggregate(
        failed=Sum("n", filter=today & failed),
        all=Sum("n", filter=today),
        failed_before=Sum("n", filter=yesterday & failed),
        all_before=Sum("n", filter=yesterday),
    )
    if not found["failed"] or not found["all_before"]:
        return []
    share, before = found["failed"] / found["all"], (found["failed_before"] or 0) / found["all_before"]
    if found["failed"] < 10 or share < 2 * before + 0.01:
        return []
    text = _("%(now)s %% of the jobs of the last hour failed; yesterday at this time %(before)s %%.")
    return [Problem(text % {"now": number_format(100 * share, 1), "before": number_format(100 * before, 1)})]
