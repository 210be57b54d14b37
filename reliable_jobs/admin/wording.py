"""Times, durations and numbers as all pages write them, in the reader's language."""

from __future__ import annotations

import datetime

from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, npgettext, pgettext_lazy

from reliable_jobs.status import Reason, Status
from reliable_jobs.translatable import shown

ERROR_SHOWN = 200


def moment(at: datetime.datetime | None) -> str:
    """A time in the page's time zone, to the second."""
    if at is None:
        return "-"
    try:
        return date_format(timezone.localtime(at) if timezone.is_aware(at) else at, "Y-m-d H:i:s")
    except OverflowError:  # at the end of all time, in a zone east of it
        return str(at)


def span(delta: datetime.timedelta) -> str:
    """How long, in the two largest units worth reading; where it stands alone, or before a word."""
    days = _days(delta)
    return ngettext("%(count)s day", "%(count)s days", days) % {"count": number(days)} if days else _short(delta)


def distance(delta: datetime.timedelta) -> str:
    """As :func:`span`, after a preposition ("in …", "… ago", "for …"): languages with cases have another form there."""
    days = _days(delta)
    text = npgettext("after a preposition", "%(count)s day", "%(count)s days", days)
    return text % {"count": number(days)} if days else _short(delta)


def _days(delta: datetime.timedelta) -> int:
    """Where hours are not worth reading; else 0."""
    days = abs(delta).days
    return days if days >= 2 else 0


def _short(delta: datetime.timedelta) -> str:
    seconds = int(abs(delta.total_seconds()))
    if seconds < 60:
        return _("%(seconds)d s") % {"seconds": seconds}
    minutes, hours = seconds // 60, seconds // 3600
    if hours < 1:
        return _("%(minutes)d min") % {"minutes": minutes}
    if minutes % 60:
        return _("%(hours)d h %(minutes)d min") % {"hours": hours, "minutes": minutes % 60}
    return _("%(hours)d h") % {"hours": hours}


def number(value: int) -> str:
    """With the language's separator between thousands."""
    return str(number_format(value, force_grouping=True))


def jobs(count: int) -> str:
    """How many jobs: "1 job", "2,000 jobs"."""
    return ngettext("%(count)s job", "%(count)s jobs", count) % {"count": number(count)}


def first_line(text: str, limit: int = ERROR_SHOWN) -> str:
    """The first line of an error, without its full stop."""
    line = shown(text.strip().split("\n", 1)[0].strip())
    return (line[: limit - 1] + "…") if len(line) > limit else line.removesuffix(".")


#: Of the states that a selection knows beside the statuses.
_STATES = {
    "retrying": pgettext_lazy("job", "retrying"),
    "requeued": Reason.REQUEUED.label,
    "crashed": Reason.CRASH.label,
    "parked": Reason.PARKED.label,
}


def state_label(state: str) -> str:
    """What a state of :data:`reliable_jobs.models.selection.STATES` is called."""
    return str(Status(state).label if state in Status else _STATES[state])
