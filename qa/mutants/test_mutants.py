"""The list of mutants follows the code; `make mutants` shows that each of them is noticed."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from qa.mutants.catalogue import MUTANTS
from qa.mutants.mutant import ROOT, Mutant, mutated
from qa.mutants.trial import verdict

each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)


@each_mutant
def test_every_mutant_applies(mutant: Mutant) -> None:
    files = mutated(mutant, ROOT / "reliable_jobs")
    assert all(path.read_text() != text for path, text in files.items())


@each_mutant
def test_every_mutant_names_tests_that_exist(mutant: Mutant) -> None:
    for node in mutant.tests:
        file, function = node.partition("[")[0].split("::")
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.MULTILINE), node


def test_a_mutant_has_a_name_of_its_own() -> None:
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1


@pytest.mark.parametrize(
    ("code", "output", "said"),
    [
        (1, "E       assert 1 == 2\n1 failed in 3.02s", "red"),
        (0, "1 passed in 3.02s", "SURVIVED"),
        (1, "E       Failed: Timeout (>200.0s) from pytest-timeout.\n1 failed in 201.02s", "TIMED OUT"),
        (-1, "", "TIMED OUT"),
        (1, "E       KeyError: 'x'\n1 error in 3.02s", "BROKEN (set-up)"),
        (4, "ERROR: not found: tests/nowhere.py::test_nothing", "BROKEN (4)"),
    ],
)
def test_only_a_failed_test_counts_as_noticed(code: int, output: str, said: str) -> None:
    assert verdict(code, output) == said
