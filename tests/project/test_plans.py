"""What the sources must not say to the jobs table."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "reliable_jobs"
_IN_PARENTHESES = r"[^()]*(?:\([^()]*\)[^()]*)*"
#: A filter that names ids and a status.
BOTH = re.compile(rf"filter\((?={_IN_PARENTHESES}\bpk(?:__in)?=)(?={_IN_PARENTHESES}\bstatus=)")
#: A filter of the admin's, whose ids are those of a subselect.
MAY = {"models/selection.py"}


def said_in(text: str) -> list[str]:
    return [text[match.start() :].partition("\n")[0] for match in BOTH.finditer(text)]


def test_rows_told_by_id_are_asked_for_their_status_by_still() -> None:
    """See ``JobQuerySet.still()``; tests/lifecycle/test_plans_of_runs.py reads the plans of a run."""
    assert said_in("rows.filter(pk__in=list(ids), sends=1, status=Status.WAITING).update()")
    assert not said_in("rows.filter(pk__in=list(ids)).update(status=Status.WAITING)")
    sources = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    found = {name: said for name, text in sources.items() if name not in MAY and (said := said_in(text))}
    assert found == {}
