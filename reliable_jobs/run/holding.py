"""Holding a message while the database is away."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from celery.exceptions import Reject, SoftTimeLimitExceeded
from django.db import connections

from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import db_errors
from reliable_jobs.run import recovery
from reliable_jobs.run.execution import NotStarted

logger = logging.getLogger("reliable_jobs.delivery")
_T = TypeVar("_T")

#: Seconds for which a claim that meets other transactions is tried again at once. They are short: a lock that is held
#: for longer (a forgotten session, SQLite's one writer) is waited for like a database that is away, and logged.
CONFLICTS_PASS = 1.0


def held(using: str, what: str, attempt: Callable[[], _T]) -> _T:
    """Do what begins with a claim. While the database can't be reached before a task function began, the message is
    neither run nor failed nor spun on: it is held with capped back-off, and given back to the broker after HOLD
    seconds.

    Raises:
        celery.exceptions.Reject: held for too long.
    """
    began = time.monotonic()
    pause, until = 0.25, began + settings.HOLD
    connection: Any = connections[using]
    kept = connection.connection is not None
    connection.health_check_done = True  # the claim is the check
    while True:
        try:
            return attempt()
        except NotStarted as reason:
            met = reason.__cause__ is not None and db_errors.is_conflict(reason.__cause__, using)
            if kept and not met:
                # It may have died since the last job, which says nothing of the database.
                kept = False
                recovery.discard_connection(using)
                continue
            # By the clock: one try at a host that is gone takes two minutes.
            if time.monotonic() >= until:
                raise Reject(str(reason), requeue=True) from reason
            if met and time.monotonic() < began + CONFLICTS_PASS:
                # The session is whole, and the other transaction is short: it claims or settles as this one does.
                _sleep(random.uniform(0.005, 0.05), reason)
                continue
            logger.warning(
                "%s: the database %r can't be used (%s). Holding the message, next try in %.1f s.",
                what,
                using,
                reason,
                pause,
            )
            if not met:
                recovery.discard_connection(using)
            _sleep(pause, reason)
            pause = min(pause * 2, 1.0 if met else 15.0)


def _sleep(seconds: float, reason: NotStarted) -> None:
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        # Meant for a task function, and none has begun. With the message comes another limit.
        raise Reject(f"held past the soft time limit: {reason}", requeue=True) from reason
