"""The environment against the settings: variables that Celery's command line reads and Django's processes do not."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from django.core.checks import CheckMessage, Warning, register
from kombu.utils.url import maybe_sanitize_url, parse_url

from reliable_jobs.checks.celery_settings import TAG
from reliable_jobs.compat.celery import configured_app

#: What ``celery --broker`` reads (celery/bin/celery.py). The command then sets CELERY_BROKER_URL, which every process
#: of Celery's prefers to its settings (celery/app/utils.py).
COMMAND_LINE = "BROKER_URL"


@register(TAG)
def check_broker_of_the_command_line(**kwargs: Any) -> list[CheckMessage]:
    app = configured_app()
    theirs = os.environ.get(COMMAND_LINE)
    if app is None or not theirs or _both_are_named(app):
        return []
    ours = app.conf.broker_url or "amqp://"
    ours = ours if isinstance(ours, str) else ";".join(ours)
    try:
        if _parts(ours) == _parts(theirs):
            return []
        shown, shown_ours = _shown(theirs), _shown(ours)
    except (ValueError, KeyError):  # one is no URL, or has no such option: who connects is told so
        return []
    return [
        Warning(
            f"{COMMAND_LINE} in the environment is {shown}, but the settings' broker is "
            f"{shown_ours}. The celery command obeys the variable, so its workers and beat use the one "
            "broker, and web processes and manage.py commands publish to the other, where nobody consumes.",
            hint=f"Read it in the settings: CELERY_BROKER_URL = os.environ['{COMMAND_LINE}']; or give the variable "
            "another name.",
            id="reliable_jobs.W018",
        )
    ]


def _both_are_named(app: Celery) -> bool:
    """Whether the brokers to read from and to write to are set each for itself, so that broker_url says nothing."""
    return all(
        os.environ.get(f"CELERY_{name.upper()}") or app.conf.get(name)
        for name in ("broker_read_url", "broker_write_url")
    )


def _shown(urls: str) -> str:
    """Without passwords; kombu hides the one of the first URL only."""
    return ";".join(maybe_sanitize_url(url) for url in urls.split(";"))


def _parts(url: str) -> dict[str, Any]:
    """A URL without the differences that mean nothing: ``amqp://h``, ``amqp://h/`` and ``amqp://h//``."""
    parts: dict[str, Any] = parse_url(url)
    return {**parts, "virtual_host": parts["virtual_host"] or "/"}
