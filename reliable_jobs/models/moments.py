"""Times as people write them: in the filters of the admin, and in the options of the commands."""

from __future__ import annotations

import datetime

from django.conf import settings
from django.utils import timezone
from django.utils.dateparse import parse_datetime, parse_time
from django.utils.translation import gettext_noop

from reliable_jobs.translatable import Translatable

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def refused(template: str, **values: str) -> ValueError:
    """For whoever typed it; the admin shows it in the language of its page."""
    return ValueError(Translatable(template, **values))


def read_age(text: str) -> float:
    """Seconds: of ``90``, ``90s``, ``15m``, ``2h`` or ``7d``.

    Raises:
        ValueError: it is none.
    """
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    value = float(number) * unit
    if not 0 <= value < float("inf"):
        raise refused(gettext_noop("'%(given)s' is no length of time; write one as 90s, 15m, 2h or 7d."), given=text)
    return value


def read_moment(text: str) -> datetime.datetime:
    """A time as the database takes it: of ``2026-01-31 02:00``, ``02:00`` (the latest one) or an age such as ``2h``.
    Without a zone it is in the server's ``TIME_ZONE``.

    Raises:
        ValueError: it is none, in words for the person who typed it.
    """
    now = timezone.localtime() if settings.USE_TZ else datetime.datetime.now()
    try:
        clock = parse_time(text)
        at = parse_datetime(text) or parse_datetime(f"{text} 00:00")
        if clock is not None:
            at = datetime.datetime.combine(now.date(), clock)
            if at > now.replace(tzinfo=None):
                at -= datetime.timedelta(days=1)
        if at is None:
            at = now - datetime.timedelta(seconds=read_age(text))
    except (ValueError, OverflowError):
        raise refused(
            gettext_noop("'%(given)s' is no time; write one as 2026-01-31 02:00, 02:00 or 2h."), given=text
        ) from None
    if not 1900 < at.year < 9000:  # each database, and each time zone, can have it
        raise refused(gettext_noop("'%(given)s' is no time of our days."), given=text)
    if timezone.is_aware(at) == settings.USE_TZ:
        return at
    return timezone.make_aware(at) if settings.USE_TZ else timezone.make_naive(at)
