#!/usr/bin/env python3
"""Write the table of undocumented names in docs/architecture.md, from what reliable_jobs/compat/ declares.

    python tools/undocumented.py            # rewrite the table
    python tools/undocumented.py --check    # exit with 1 if it is not what would be written
    python tools/undocumented.py --count    # how many names of each library

The installed package must be importable; no settings are needed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "reliable_jobs"
BEGIN, END = "<!-- undocumented names: begin -->\n", "<!-- undocumented names: end -->\n"


def libraries() -> list:
    """The register, after all of compat/ has been imported."""
    for file in sorted((PACKAGE / "compat").glob("*.py")):
        importlib.import_module(f"reliable_jobs.compat.{file.stem}")
    from reliable_jobs.compat.register import LIBRARIES

    return sorted((library for library in LIBRARIES if library.uses), key=lambda library: library.title.lower())


def users() -> dict[tuple[str, str], list[str]]:
    """By module of compat/ and name: the files of the package that import it from there."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reliable_jobs.compat."):
                for alias in node.names:
                    users_of = found.setdefault((node.module or "", alias.name), [])
                    users_of.append(file.relative_to(PACKAGE).as_posix())
    return found


def name_of(use: object) -> str:
    """The name by which a function, class or reader of compat/ is imported."""
    module = vars(sys.modules[use.place[0]])
    return next(name for name, value in module.items() if value is use.what)


def table() -> str:
    used = users()
    lines = ["| names | why, and by which function of `compat/` | used by | pinned by |", "|---|---|---|---|"]
    for library in libraries():
        for use in sorted(library.uses, key=lambda use: use.place):
            names = ", ".join(f"`{name.name}`" for name in use.names)
            by = used.get((use.place[0], name_of(use)), [])
            files, tests = (", ".join(f"`{one}`" for one in some) for some in (by, [f"{t}.py" for t in use.tests]))
            lines.append(f"| {library.title}: {names} | `{name_of(use)}`: {use.why} | {files} | {tests} |")
    return ("\n".join(lines) + "\n").replace("``", "`")


def page() -> str:
    """docs/architecture.md as it should be."""
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} lacks the line {(BEGIN if not begin else END).strip()}")
    return before + begin + table() + end + after


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true")
    arguments.add_argument("--count", action="store_true")
    given = arguments.parse_args()
    if given.count:
        counts = {library.title: len({n.name for use in library.uses for n in use.names}) for library in libraries()}
        print(*(f"{title}: {count}" for title, count in counts.items()), f"all: {sum(counts.values())}", sep="\n")
        return 0
    wanted = page()
    if given.check:
        return int(PAGE.read_text() != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
