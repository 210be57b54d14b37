"""The times of a call: ``countdown``, ``eta`` and ``expires``."""

from __future__ import annotations

import datetime
from typing import Any

from reliable_jobs.compat.celery import read_time
from reliable_jobs.errors import InvalidOption


class Times:
    """The half of a task that reads times. A naive one is UTC, as for Celery, whatever its ``timezone`` is.

    Raises:
        InvalidOption: from each, what is no time or number of seconds.
    """

    app: Any
    name: Any

    def _times(self, countdown: Any, eta: Any, expires: Any) -> dict[str, Any]:
        """Those of a call, by the names that the request has for them."""
        if expires is None:
            expires = getattr(self, "expires", None)
        if countdown is None and eta is None and expires is None:
            return {}
        return {
            "countdown": self._seconds("countdown", countdown),
            "eta": None if countdown else self._time("eta", eta),
            "expires": self._seconds_or_time("expires", expires),
        }

    def _time(self, name: str, value: Any) -> datetime.datetime | None:
        if value is None:
            return None
        try:
            value = read_time(value, self.app)
            value.astimezone(datetime.timezone.utc)  # one past the year 9999 could be written, and never read again
            return value
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise InvalidOption(
                f"{self.name}: {name}={value!r} is not a datetime between the years 1 and 9999."
            ) from error

    def _seconds_or_time(self, name: str, value: Any) -> float | datetime.datetime | None:
        return self._seconds(name, value) if isinstance(value, (int, float)) else self._time(name, value)

    def _seconds(self, name: str, value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) > 10**9:
            raise InvalidOption(f"{self.name}: {name}={value!r} must be a number of seconds.")
        return float(value)
