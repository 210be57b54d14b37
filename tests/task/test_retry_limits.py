"""How often, and how long, a task wants to be tried."""

from __future__ import annotations

import pytest

from reliable_jobs.task.control import Limits


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
