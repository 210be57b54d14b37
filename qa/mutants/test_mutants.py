"""The list of mutants follows the code; `make mutants` shows that each of them is noticed."""

from __future__ import annotations

from collections import Counter

import pytest

from qa.mutants.__main__ import MUTANTS, ROOT, Mutant, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_applies(mutant: Mutant) -> None:
    files = mutated(mutant, ROOT / "reliable_jobs")
    assert all(path.read_text() != text for path, text in files.items())


def test_a_mutant_has_a_name_of_its_own() -> None:
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
