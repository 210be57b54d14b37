"""A selection of jobs in words."""

from __future__ import annotations

import datetime

from django.utils.translation import gettext as _

from reliable_jobs.admin.wording import state_label
from reliable_jobs.models import Selection


def selectable(name: str) -> bool:
    """Whether the filters of the list can name it. They take no empty text and none with blanks at an end; jobs that
    have such a name would be listed, and acted on, with all others."""
    return bool(name) and name == name.strip() and "\x00" not in name


def in_words(selection: Selection) -> str:
    """For people: ``state: failed, task: mail.send, error: ValueError, ended since 2026-01-31 02:00:00``."""
    words = []
    if selection.state:
        words.append(_("state: %(state)s") % {"state": state_label(selection.state)})
    if selection.task:
        words.append(_("task: %(task)s") % {"task": selection.task})
    if selection.queue:
        words.append(_("queue: %(queue)s") % {"queue": selection.queue})
    if selection.error:
        words.append(_("error: %(error)s") % {"error": selection.error})
    if selection.release:
        words.append(_("release: %(release)s") % {"release": selection.release})
    if selection.key:
        words.append(_("key begins with: %(key)s") % {"key": selection.key})
    if selection.id:
        words.append(_("id begins with: %(id)s") % {"id": selection.id})
    if selection.act:
        words.append(_("requeued by act %(id)s and not started since") % {"id": selection.act[:8]})
    ended = selection.is_of_final_jobs
    if selection.since:
        text = _("ended since %(at)s") if ended else _("enqueued since %(at)s")
        words.append(text % {"at": _as_given(selection.since)})
    if selection.until:
        text = _("ended before %(at)s") if ended else _("enqueued before %(at)s")
        words.append(text % {"at": _as_given(selection.until)})
    return ", ".join(words) or _("all jobs")


def _as_given(at: datetime.datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"
