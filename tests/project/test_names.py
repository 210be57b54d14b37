"""Names of tests are sentences that a terminal shows whole, and a file's name is enough to find it."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted(path for folder in ("tests", "qa") for path in (ROOT / folder).rglob("test_*.py"))
LONGEST = 69


def functions(file: Path) -> Iterator[str]:
    """The test functions and methods of a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name


def test_every_name_has_under_70_characters() -> None:
    names = [(file.name, name) for file in FILES for name in functions(file)]
    assert len(names) > 1000
    assert [(file, name) for file, name in names if len(name) > LONGEST] == []


def test_no_two_files_have_the_same_name() -> None:
    """Documents and comments name a test file without its folder."""
    assert [name for name, count in Counter(file.name for file in FILES).items() if count > 1] == []
