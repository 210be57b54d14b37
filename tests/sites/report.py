"""The table of a run, the file for machines, and the page of the docs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.sites.environments import FOLDER
from tests.sites.run import Row, as_dict

LAST = FOLDER / "last.json"
COLUMNS = {
    "site": "site",
    "lost": "lost",
    "phantom": "phantom",
    "doubled": "doubled",
    "unfinished": "unfinished",
    "healthy_but_failed": "healthy but failed",
    "messages_per_run": "messages/run",
    "connections": "db connections",
    "seconds": "seconds",
    "verdict": "verdict",
}


def cell(row: Row, column: str) -> str:
    value = getattr(row, column)
    return "-" if value is None else str(value)


def table(rows: Sequence[Row]) -> str:
    lines = [list(COLUMNS.values()), *([cell(row, column) for column in COLUMNS] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(COLUMNS))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def save(rows: Sequence[Row], path: Path = LAST) -> None:
    """Write the rows for machines; those of sites that did not run now stay as they were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = {row["site"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    after = {**before, **{row.site: as_dict(row) for row in rows}}
    path.write_text(json.dumps(list(after.values()), indent=1))
