"""What ``reliable_jobs_status --fail-if`` may be given: ``oldest>300``, ``no-sweeper`` …"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

#: Figures that a condition may compare, and what each is.
FIGURES = {
    "oldest": "seconds since the oldest waiting job became due",
    "unfinished": "unfinished jobs",
    "due": "jobs that are due and not published",
    "overdue": "jobs that are published and overdue",
    "lost_runs": "runs without a sign of life",
}
#: Conditions that compare nothing.
STATES = {
    "no-sweeper": "no sweeper has published a job that is due",
    "no-worker": "no worker consumes a queue in which jobs are due",
}


@dataclasses.dataclass(frozen=True)
class Condition:
    """
    Args:
        name: of `FIGURES`, with its limit, or of `STATES`.
    """

    name: str
    limit: float | None = None

    def __str__(self) -> str:
        return self.name if self.limit is None else f"{self.name}>{self.limit:g}"

    def holds(self, found: Mapping[str, float | bool | None]) -> str:
        """Why the command is to fail; empty where it is not.

        Args:
            found: by name, figures (None: there is no such job) and states.
        """
        value = found[self.name]
        if self.limit is None:
            return f"{self}: {STATES[self.name]}." if value else ""
        if value is None or value <= self.limit:
            return ""
        return f"{self}: {value:g} {FIGURES[self.name]}."


def condition(text: str) -> Condition:
    """
    Raises:
        ValueError: it says neither.
    """
    name, _, limit = (part.strip() for part in text.partition(">"))
    if name in STATES and not _:
        return Condition(name)
    if name in FIGURES and re.fullmatch(r"\d+(\.\d+)?", limit):
        return Condition(name, float(limit))
    figures = ", ".join(f"{name}>NUMBER" for name in FIGURES)
    raise ValueError(f"{text!r} is no condition: use {figures}, or {', '.join(STATES)}.")
