"""The glossary has each term once, in short sentences, and sends its reader to places that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
ROWS = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in re.findall(r"^\|.*", GLOSSARY, re.M)]
TERMS = [row for row in ROWS if row[0] != "term" and not row[0].startswith("---")]
#: What a newcomer meets in the code and in the admin, and must find here.
WANTED = """
    task, task function, job, payload, event, enqueue, dispatch, claim, settle, retry, snooze, sweep, rescue, requeue,
    prune, content version, committed claim, attempt, `due_at`, `check_at`, `sends`, suspect, park, hand back, hold,
    bundle, relay, breaker, grace, lease, token, fence, epoch, redelivered, crash, interruption, failure, pointer, key
"""


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_glossary_has_every_term_once() -> None:
    terms = [term for term, *_ in TERMS]
    assert len(terms) == len(set(terms))
    assert {term.strip() for term in WANTED.split(",")} <= set(terms)
    assert "glossary.md" in (ROOT / "docs/architecture.md").read_text()


@pytest.mark.parametrize("row", TERMS, ids=lambda row: row[0])
def test_a_term_is_explained_shortly_and_leads_on(row: tuple[str, ...]) -> None:
    term, meaning, where = row
    assert meaning.endswith("."), term
    assert meaning.count(". ") <= 2, term
    assert len(meaning) <= 240, term
    places = re.findall(r"`([\w/]+\.py)`(?: `(\w+)`)?", where)
    assert places or "](" in where, term
    for file, name in places:
        source = (ROOT / "reliable_jobs" / file).read_text()
        assert not name or re.search(rf"^\s*(def|class) {name}\b", source, re.M), f"{file} has no {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_the_documents_lead_to_headings(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([\w./-]*\.md)?#([^)]+)\)", document.read_text()):
        found = document.parent / target if target else document
        assert anchor in anchors(found), f"{target or document.name}#{anchor}"
