"""What differs between plain and reliable tasks on purpose, each with its reason: for the docs, and for the tests.

``python -m tests.contract.differences`` writes the table into docs/celery.md.
"""

from __future__ import annotations

from pathlib import Path

from qa.contract.differences import DIFFERENCES as OF_CELERYS_TESTS

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "celery.md"

#: By case, and what of it: "story" (hooks and signals, in their order), "events", "answer".
_ROW_HAS_TIMES = (
    "the time is in the row and in `self.request`; a message with it would be held, or dropped, by a worker"
)
_ROW_ANSWERS = "the row says how the job ended, whether or not its value is kept"
_IGNORED = "the job has ended; without an event of its end monitors would show it as started for ever"
_ONE_END = "a row has one end: what was asked for first counts. Celery runs the task again although it has succeeded"
_ALIVE = "the worker process lives on, and the hooks are called as of any error"
_KILLED = "a killed run is counted on its row when the job comes again; then it fails as one whose run never reported"
_REQUEUED = "the row waits again: no message goes back to the queue, to come again at once and for ever"
_HOOK = "the row keeps the error of the function; Celery overwrites it by that of the hook"

DIFFERENCES: dict[tuple[str, str], str] = {
    ("retry, and goes on", "story"): _ONE_END,
    ("retry, and goes on", "events"): _ONE_END,
    ("Ignore", "events"): _IGNORED,
    ("Ignore", "answer"): _ROW_ANSWERS,
    ("a state of its own, and Ignore", "events"): _IGNORED,
    ("Reject, requeued", "story"): _REQUEUED,
    ("Reject, requeued", "events"): _REQUEUED,
    ("SystemExit", "story"): _ALIVE,
    ("SystemExit", "events"): _ALIVE,
    ("SystemExit", "answer"): _ALIVE,
    ("hard time limit", "story"): _KILLED,
    ("hard time limit", "events"): _KILLED,
    ("hard time limit", "answer"): _KILLED,
    ("replace", "events"): "the delivery that asked for it has ended; the same job comes again with other content",
    ("on_failure raises", "story"): _HOOK,
    ("on_failure raises", "answer"): _HOOK,
    ("ignore_result", "answer"): _ROW_ANSWERS,
    ("ignore_result, raises", "answer"): _ROW_ANSWERS,
    ("ignore_result of the call", "answer"): _ROW_ANSWERS,
    ("countdown", "events"): _ROW_HAS_TIMES,
    ("eta", "events"): _ROW_HAS_TIMES,
    ("expires", "events"): _ROW_HAS_TIMES,
    ("expires, a time", "events"): _ROW_HAS_TIMES,
    ("expires of the task", "events"): _ROW_HAS_TIMES,
}


def page() -> str:
    """The page as it should be."""
    own = ["| what a task does, or is called with | what is different | why |", "|---|---|---|"]
    by_reason: dict[tuple[str, str], list[str]] = {}
    for (case, what), why in DIFFERENCES.items():
        by_reason.setdefault((case, why), []).append(what)
    own += [f"| {case} | {', '.join(whats)} | {why} |" for (case, why), whats in by_reason.items()]
    theirs = ["| test | why it differs |", "|---|---|"]
    theirs += [f"| `{test}` | {why} |" for test, why in OF_CELERYS_TESTS.items()]
    text = _between(PAGE.read_text(), "differences", own)
    return _between(text, "contract", theirs)


def _between(text: str, name: str, lines: list[str]) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    return "\n".join([f"{before}{begin}", *lines, f"{end}{rest.partition(end)[2]}"])


if __name__ == "__main__":
    PAGE.write_text(page())
