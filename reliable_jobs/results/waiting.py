"""How often somebody who waits for a job looks at its row.

Soon at first, because most jobs are short, and then ever less often: a waiting process costs the database a look each
tenth of the time that it has waited already, and two a second at most. The commit of a job tells nobody (a NOTIFY takes
a lock of the whole server, and another lock on the row would make a claim skip it).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery.exceptions import TimeoutError

#: Seconds until the second look.
FIRST = 0.002
#: How much longer than a pause the next one is.
FACTOR = 1.5
#: Seconds between two looks at most, however long one has waited.
LONGEST = 0.5
#: The part of the time waited so far that a pause may take, and the seconds that it may take in any case.
SHARE, SHORT = 0.1, 0.005


class Pauses:
    """Called between two looks.

    Args:
        timeout: seconds to wait at most; None without a limit.
        interval: seconds between two looks at most.
        on_interval: called before each pause.
    """

    def __init__(self, timeout: float | None, interval: float | None, on_interval: Callable[[], Any] | None) -> None:
        self._began = time.monotonic()
        self._timeout, self._on_interval = timeout, on_interval
        self._most = LONGEST if interval is None else min(LONGEST, max(0.0, interval))
        self._pause = FIRST

    def __call__(self) -> None:
        """
        Raises:
            celery.exceptions.TimeoutError: the time is over.
        """
        if self._on_interval is not None:
            self._on_interval()
        waited = time.monotonic() - self._began
        pause = min(self._pause, max(SHORT, waited * SHARE), self._most)
        if self._timeout is not None:
            if waited >= self._timeout:
                raise TimeoutError("The operation timed out.")
            pause = min(pause, self._timeout - waited)
        # A poll: a NOTIFY in each settlement would take a lock of the whole server.
        time.sleep(pause)
        self._pause *= FACTOR
