"""Hypothesis as all tests here use it."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings


def examples(count: int, *, derandomize: bool = True, **more: Any) -> settings:
    """The same ones each time, unless told otherwise; none is kept, and none is in a hurry.

    Args:
        more: as ``hypothesis.settings`` takes it.
    """
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )
