"""What a mutant is: one protection, the replacement that switches it off, and the tests that notice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

I1 = "tests/promises/test_promise_1_atomic_enqueue.py"
I2 = "tests/promises/test_promise_2_nothing_forgotten.py"
I3 = "tests/promises/test_promise_3_exactly_once_effects.py"
I4 = "tests/promises/test_promise_4_one_live_run.py"
I5 = "tests/promises/test_promise_5_outages_cost_time.py"
I6 = "tests/promises/test_promise_6_bounded_loops.py"
I7 = "tests/promises/test_promise_7_no_silent_discard.py"
ADOPTION = "tests/adopt/test_adoption.py"
BAD = "tests/worker/test_bad_messages.py"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One protection, and the replacement that switches it off.

    Args:
        name: what is switched off.
        promises: the ids that rest on it.
        file: below the package.
        old: text that occurs in the file once.
        new: what stands there instead.
        tests: node ids of which at least one must fail.
        also: further replacements (file, old, new), where one protection is kept twice.
    """

    name: str
    promises: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    also: tuple[tuple[str, str, str], ...] = ()


def mutated(mutant: Mutant, package: Path) -> dict[Path, str]:
    """The package's files as the mutant has them.

    Raises:
        ValueError: the text is not there exactly once, or the outcome is no Python: the list must follow the code.
    """
    files: dict[Path, str] = {}
    for name, old, new in ((mutant.file, mutant.old, mutant.new), *mutant.also):
        path = package / name
        text = files[path] if path in files else path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{mutant.name}: {name} holds {old!r} {text.count(old)} times, not once")
        files[path] = text.replace(old, new)
        try:
            compile(files[path], name, "exec")
        except SyntaxError as error:
            raise ValueError(f"{mutant.name}: {name} would be no Python: {error}") from error
    return files
