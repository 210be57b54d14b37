"""All promises at once: histories that Hypothesis makes up, over the real code and a real PostgreSQL, in which any step
may go wrong between any two others. And each protection, switched off, is missed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from hypothesis.stateful import run_state_machine_as_test

from qa.model.machine import FIND_ONLY, machine, profile
from qa.model.place import Place
from qa.model.scenarios import SCENARIOS
from qa.model.switches import switched_off
from qa.model.world import World

pytestmark = pytest.mark.servers

#: What a search of seconds finds; for the others there are their scenarios, and the soak.
FOUND_SOON = ["careful-path", "fence-epoch", "final-check", "content-version-check", "row-lock", "skip-locked"]
#: What is broken without these shows in one exact place, to which the scenario looks and no promise after each step.
NEEDS_ITS_SCENARIO = {
    "broken-commit-is-looked-into",
    "broken-commit-is-recorded",
    "crash-given-back",
    "expiry",
    "interruption-bound",
}
MANY = int(os.environ.get("MODEL_EXAMPLES", "1000"))


def test_no_history_breaks_a_promise(place: Place) -> None:
    run_state_machine_as_test(machine(place), settings=profile(30))


@pytest.mark.soak
def test_no_history_of_many_breaks_a_promise(place: Place) -> None:
    """New ones each time: ``MODEL_EXAMPLES`` says how many."""
    run_state_machine_as_test(machine(place), settings=profile(MANY, steps=50, derandomize=False))


def _play(place: Place, protection: str) -> None:
    with World.of(place) as world:
        SCENARIOS[protection](world)
        world.check()
        world.finish()


@contextlib.contextmanager
def _without(place: Place, protection: str) -> Iterator[None]:
    """Off, and noticed by a promise."""
    place.dismiss()
    with switched_off(protection), pytest.raises(AssertionError, match=r"^I\d|^actor") as broken:
        yield
    place.dismiss()
    print(f"without {protection}: {broken.value}")


@pytest.mark.parametrize("protection", SCENARIOS)
def test_each_protection_is_missed_in_its_scenario(place: Place, protection: str) -> None:
    _play(place, protection)
    with _without(place, protection):
        _play(place, protection)


@pytest.mark.parametrize("protection", FOUND_SOON)
def test_a_search_finds_what_breaks_without_a_protection(place: Place, protection: str) -> None:
    with _without(place, protection):
        run_state_machine_as_test(machine(place), settings=profile(400, **FIND_ONLY))


@pytest.mark.soak
@pytest.mark.parametrize("protection", sorted(set(SCENARIOS) - set(FOUND_SOON) - NEEDS_ITS_SCENARIO))
def test_a_long_search_finds_what_breaks_without_a_protection(place: Place, protection: str) -> None:
    with _without(place, protection):
        run_state_machine_as_test(machine(place), settings=profile(MANY, derandomize=False, **FIND_ONLY))
