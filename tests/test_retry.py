"""When to run again: pure."""

from __future__ import annotations

import pytest

from reliable_jobs.backoff import (
    Limits,
    crash_delay,
    handback_delay,
    interruption_delay,
)
from reliable_jobs.sweep.sweeper import next_check

TIMES = 200


@pytest.mark.parametrize(("failures", "allowed"), [(0, True), (1, True), (2, True), (3, False), (4, False)])
def test_max_retries_counts_the_runs_after_the_first(failures: int, allowed: bool) -> None:
    assert (Limits(3, None).refuses(failures, age=0, delay=0) is None) == allowed


def test_max_retries_of_none_never_refuses() -> None:
    assert Limits(None, None).refuses(10**6, age=10**9, delay=0) is None


def test_max_retries_of_zero_refuses_the_first_retry_and_says_so() -> None:
    assert Limits(0, None).refuses(0, age=0, delay=0) == "max_retries=0 reached"


@pytest.mark.parametrize(
    ("age", "delay", "allowed"), [(0, 60, True), (50, 10, True), (50, 10.1, False), (61, 0, False)]
)
def test_a_window_counts_to_the_start_of_the_next_run(age: float, delay: float, allowed: bool) -> None:
    assert (Limits(None, 60).refuses(0, age, delay) is None) == allowed


def test_a_window_that_is_over_says_so() -> None:
    assert Limits(None, 60).refuses(0, 61, 0) == "retry window of 60 s is over"


def test_whichever_of_window_and_count_is_over_first_refuses() -> None:
    both = Limits(2, 60)
    assert both.refuses(1, 0, 0) is None
    assert both.refuses(2, 0, 0) is not None
    assert both.refuses(0, 61, 0) is not None


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


@pytest.mark.promise("I8")
def test_every_send_doubles_the_time_to_the_next_look_up_to_a_limit() -> None:
    assert [next_check(15, sends, 3600) for sends in (1, 2, 3, 4)] == [15, 30, 60, 120]
    assert next_check(15, 9, 3600) == 3600
    assert next_check(15, 10**9, 3600) == 3600
    assert next_check(15, 0, 3600) == 15
