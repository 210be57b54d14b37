"""How long a job waits that nobody asked to wait."""

from __future__ import annotations

import pytest

from reliable_jobs.lifecycle.delays import crash_delay, handback_delay, interruption_delay

TIMES = 200


@pytest.mark.parametrize("crashes", [0, 1, 2, 5, 50, 10**6])
def test_the_pause_after_a_crash_is_uneven_and_at_most_ninety_seconds(crashes: int) -> None:
    pauses = [crash_delay(crashes) for _ in range(TIMES)]
    assert min(pauses) > 0
    assert max(pauses) <= 90
    assert len(set(pauses)) > 1


def test_the_pause_after_a_crash_grows() -> None:
    assert max(crash_delay(1) for _ in range(TIMES)) < min(crash_delay(4) for _ in range(TIMES))


@pytest.mark.parametrize("count", [0, 1, 5, 10, 10**6])
def test_the_pause_after_an_interruption_is_bounded_and_uneven(count: int) -> None:
    pauses = [interruption_delay(count) for _ in range(TIMES)]
    assert min(pauses) > 0
    assert max(pauses) <= 45
    assert len(set(pauses)) > 1


def test_the_first_pause_after_a_deadlock_is_short() -> None:
    assert max(interruption_delay(0) for _ in range(TIMES)) < 0.2


@pytest.mark.parametrize("count", [0, 1, 6, 10**6])
def test_a_job_handed_back_comes_again_within_72_seconds(count: int) -> None:
    assert all(1 < handback_delay(count) <= 72 for _ in range(TIMES))
