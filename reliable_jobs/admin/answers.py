"""Sentences above and below the overview's tables: who is there, what fails since when and in which release, what is
slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from reliable_jobs.admin.charts import Row
from reliable_jobs.admin.wording import jobs, moment, number
from reliable_jobs.health import figures
from reliable_jobs.presence import Seen
from reliable_jobs.status import ProcessKind

_Kind = TypeVar("_Kind", bound=figures.Failing)

#: Kinds of failures that get a sentence.
SAID = 3


def alive(living: Sequence[Seen]) -> str:
    """How many processes are there, and who sweeps."""
    count = Counter(one.kind for one in living)
    workers, beats, relays = (count[kind] for kind in (ProcessKind.WORKER, ProcessKind.BEAT, ProcessKind.RELAY))
    there = ", ".join(
        (
            ngettext("%(count)d worker", "%(count)d workers", workers) % {"count": workers}
            if workers
            else _("no worker"),
            ngettext("%(count)d beat", "%(count)d beats", beats) % {"count": beats} if beats else _("no beat"),
            ngettext("%(count)d relay", "%(count)d relays", relays) % {"count": relays} if relays else _("no relay"),
        )
    )
    if beats:
        sweeps = _("Beat sweeps.")
    elif relays:
        sweeps = _("The relay sweeps.")
    else:
        sweeps = _("The workers sweep.") if workers else _("Nobody sweeps.")
    return " ".join([_("Alive: %(there)s.") % {"there": there}, sweeps])


def failing(kind: figures.Failing, kinds: Sequence[figures.Failing]) -> str:
    """What fails, since when, how often and in which release, and what to do.

    Args:
        kinds: all that fail, to see whether other releases do too.
    """
    values = {"task": kind.task, "error": kind.error or "?", "release": kind.release, "jobs": jobs(kind.failed)}
    values |= {"first": moment(kind.first), "lately": number(kind.lately)}
    said = [
        _("Task '%(task)s' fails with %(error)s: %(jobs)s since %(first)s, %(lately)s of them in the last hour.")
        % values
    ]
    same = {one.release for one in kinds if one.failed and (one.task, one.error) == (kind.task, kind.error)}
    if kind.release and len(same) == 1:
        said.append(_("It fails only in release '%(release)s'.") % values)
    elif kind.release:
        said.append(_("This is in release '%(release)s'; other releases fail too.") % values)
    said.append(_("Look at one of them. Fix the cause, then run them again."))
    return " ".join(said)


def worst(kinds: Sequence[_Kind]) -> list[_Kind]:
    """Those that failed in the last hour, the most frequent ones."""
    return sorted((kind for kind in kinds if kind.lately), key=lambda kind: -kind.lately)[:SAID]


def slowest(tasks: Sequence[Row]) -> str:
    """The task whose runs take longest; "" where none has ended."""
    known = [row for row in tasks if row.times.run_p95 is not None]
    if not known:
        return ""
    row = max(known, key=lambda row: row.times.run_p95 or 0.0)
    values = {"task": row.name, "p95": _seconds(row.times.run_p95 or 0.0), "longest": _seconds(row.longest * 1000)}
    return (
        _(
            "Slowest: task '%(task)s'. Of 20 runs 19 end within about %(p95)s s; the longest took %(longest)s s. What "
            "runs now, and for how long, is on the page Workers."
        )
        % values
    )


def _seconds(milliseconds: float) -> str:
    return str(number_format(milliseconds / 1000, 1 if milliseconds >= 1000 else 3))
