"""What the campaign's processes do beside their work: note each publish, and show a time of the campaign's choice.

Both are wrapped around from outside, as a test does it; the app has no hook for them.
"""

from __future__ import annotations

import datetime
import faulthandler
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.utils import timezone

from qa.chaos import ledger
from reliable_jobs.dispatch import bundles
from reliable_jobs.dispatch.answers import Confirms
from reliable_jobs.dispatch.connection import Link
from reliable_jobs.message.row_to_message import Outgoing

#: A file with the seconds by which this process's clock is wrong. (``time.time`` and Django's ``timezone.now``; the
#: monotonic clock stays right, as it does when a machine's time is set.)
CLOCK = "TEST_CLOCK"
#: Has a process write its threads' stacks to its log.
SHOW_THREADS = signal.SIGUSR2
#: How often the file is read, in seconds.
_LOOK_EVERY = 0.2


def install() -> None:
    """Do so in this process."""
    _note_publishes()
    if ledger.VARIABLE in os.environ:
        faulthandler.register(SHOW_THREADS, all_threads=True)
    if CLOCK in os.environ:
        _follow_clock(Path(os.environ[CLOCK]))


def _note_publishes() -> None:
    publish = Link.publish

    def noted(self: Link, messages: Sequence[Outgoing], deadline: float) -> Confirms:
        # Before it: one whose process dies in between must not be missing from the count of copies.
        carriers = [message.headers["argsrepr"] for message in messages if message.headers["task"] == bundles.TASK]
        ledger.note("publishes", jobs=[str(message.id) for message in messages], carriers=carriers)
        return publish(self, messages, deadline)

    Link.publish = noted  # type: ignore[method-assign]


def _follow_clock(path: Path) -> None:
    right_time, right_now = time.time, timezone.now
    looked_at, seconds = -_LOOK_EVERY, 0.0

    def wrong_by() -> float:
        nonlocal looked_at, seconds
        if time.monotonic() - looked_at >= _LOOK_EVERY:
            looked_at = time.monotonic()
            try:
                seconds = float(path.read_text() or 0)
            except OSError:
                seconds = 0.0
        return seconds

    def now(*args: Any) -> datetime.datetime:
        return right_now(*args) + datetime.timedelta(seconds=wrong_by())

    time.time = lambda: right_time() + wrong_by()
    timezone.now = now  # type: ignore[assignment]
