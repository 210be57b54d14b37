"""All promises at once: histories that Hypothesis makes up, over the real code and a real PostgreSQL, in which any step
may go wrong between any two others. And each protection, switched off, is missed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.model.conftest import place  # noqa: F401 - a fixture
from tests.model.machine import FIND_ONLY, machine, profile
from tests.model.scenarios import SCENARIOS
from tests.model.switches import switched_off
from tests.model.world import Place, World

pytestmark = pytest.mark.servers

#: What a search of seconds finds; for the others there is a scenario, and the soak.
FOUND_SOON = ["row-lock", "rev-check", "doubling"]


def test_no_history_breaks_a_promise(place: Place) -> None:  # noqa: F811
    run_state_machine_as_test(machine(place), settings=profile(40))


def _play(place: Place, protection: str) -> None:  # noqa: F811
    with World.of(place) as world:
        SCENARIOS[protection](world)
        world.check()
        world.finish()


@contextlib.contextmanager
def _without(place: Place, protection: str) -> Iterator[None]:  # noqa: F811
    """Off, and noticed by a promise."""
    place.dismiss()
    with switched_off(protection), pytest.raises(AssertionError, match=r"^I\d|^actor") as broken:
        yield
    place.dismiss()
    print(f"without {protection}: {broken.value}")


@pytest.mark.parametrize("protection", SCENARIOS)
def test_each_protection_is_missed_in_its_scenario(place: Place, protection: str) -> None:  # noqa: F811
    _play(place, protection)
    with _without(place, protection):
        _play(place, protection)


@pytest.mark.parametrize("protection", FOUND_SOON)
def test_a_search_finds_what_breaks_without_a_protection(place: Place, protection: str) -> None:  # noqa: F811
    with _without(place, protection):
        run_state_machine_as_test(machine(place), settings=profile(100, **FIND_ONLY))
