"""Django: signals. Needs no loaded apps."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from django.dispatch import Signal

from reliable_jobs.compat.django import DJANGO

receivers_of = DJANGO.attribute(
    "Signal.receivers",
    "Who listens to a signal: each job asks, and what a signal says is put together for listeners only.",
    inside="django.dispatch.dispatcher:Signal.__init__",
    tests=["test_signals"],
)


@DJANGO.undocumented("Signal.lock", inside="django.dispatch.dispatcher:Signal.__init__", tests=["test_signals"])
def unlock_in_children(signals: Iterable[Signal]) -> None:
    """To send takes a signal's lock. A child that is forked while another thread has it (the sweeper's,
    beside a worker) would wait for ever at its first job."""
    all_of_them = tuple(signals)

    def renew() -> None:
        for signal in all_of_them:
            signal.lock = threading.Lock()

    os.register_at_fork(after_in_child=renew)
