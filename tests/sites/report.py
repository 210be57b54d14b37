"""The table of a run, the file for machines, and the page of the docs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.sites.environments import FOLDER, ROOT
from tests.sites.run import Row, as_dict

LAST = FOLDER / "last.json"
PAGE = ROOT / "docs" / "sites.md"
BEGIN, END = "<!-- made by make sites: begin -->\n", "<!-- made by make sites: end -->\n"
KINDS = {
    "base": "The base site",
    "versions": "Versions",
    "databases": "Databases",
    "brokers": "Brokers",
    "pools": "Pools, and who publishes",
    "observability": "Tracing and error reporting",
}
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


def save(rows: Sequence[Row], names: Sequence[str], path: Path = LAST) -> None:
    """Write the rows for machines, in the order of the names; those of sites that did not run now stay as they were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {row["site"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    known |= {row.site: as_dict(row) for row in rows}
    path.write_text(json.dumps([known[name] for name in names if name in known], indent=1))


def write_page(path: Path = LAST, page: Path = PAGE) -> None:
    """Put the figures of the last run of each site into the page of the docs."""
    rows = json.loads(path.read_text())
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + markdown(rows) + END + after)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    columns = [name for name in COLUMNS if name not in ("site", "seconds")]
    lines = []
    for kind, title in KINDS.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        if not of_kind:
            continue
        lines += [f"\n### {title}\n"]
        lines += ["| site | what it varies | checks | " + " | ".join(COLUMNS[name] for name in columns) + " |"]
        lines += ["|---" * (len(columns) + 3) + "|"]
        for row in of_kind:
            cells = ["-" if row[name] is None else str(row[name]) for name in columns]
            checks = ", ".join(name.removeprefix("reliable_jobs.") for name in row["checks"]) or "-"
            lines.append(f"| {row['site']} | {row['varies']} | {checks} | " + " | ".join(cells) + " |")
    return "\n".join(lines).lstrip("\n") + "\n"
