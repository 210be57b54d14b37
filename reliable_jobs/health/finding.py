"""One thing that a look at a site has found."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any


class Severity(enum.IntEnum):
    """How bad it is; the name in small letters is the word for people."""

    INFO = 10
    """Nothing to do."""
    WARNING = 20
    """Works, and will not under load or after a failure."""
    ERROR = 30
    """Jobs wait, fail, or may be lost."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclasses.dataclass(frozen=True)
class Finding:
    """
    Args:
        area: what it is about: "configuration", "broker", "database 'default'", "sweeper" …
        says: what was found, with its figures.
        fix: what to do about it; empty for `Severity.INFO`.
        id: of the system check that says so, where it is one.
    """

    severity: Severity
    area: str
    says: str
    fix: str = ""
    id: str = ""

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "severity": str(self.severity)}
