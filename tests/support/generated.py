"""Hypothesis as all tests here use it."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

#: One environment of ``make test`` takes all examples; the others, for their Pythons' sake, a part: see tox.ini.
SHARE = int(os.environ.get("HYPOTHESIS_SHARE", "1"))


def examples(count: int, *, derandomize: bool = True, **more: Any) -> settings:
    """The same ones each time, unless told otherwise; none is kept, and none is in a hurry.

    Args:
        more: as ``hypothesis.settings`` takes it.
    """
    return settings(
        max_examples=max(1, count // SHARE),
        deadline=None,
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )
