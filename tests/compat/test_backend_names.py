"""What Celery asks of a result backend: each name is answered by ours, or is known to be right as it is inherited."""

from __future__ import annotations

import re
from pathlib import Path

import celery
import pytest
from celery.backends.base import Backend, BaseBackend

from reliable_jobs.compat.celery_asked import AskedBackend
from reliable_jobs.compat.celery_backend import AnsweringBackend
from reliable_jobs.results import LedgerBackend
from tests.celery_app import app

#: Celery's own, made of names that are answered.
INHERITED = {
    "READY_STATES": "a constant",
    "_cache": "of size 0, so that nothing is kept in it",
    "_call_task_errbacks": "of plain tasks; those of jobs are written with the settlement",
    "_ensure_retryable": "calls what it is given",
    "_fail_chain": "store_result() and on_chord_part_return() of plain steps",
    "chord_error_from_stack": "fail_from_current_stack(), for the body of a plain chord",
    "fail_from_current_stack": "mark_as_failure()",
    "get_state": "get_task_meta()",
    "is_async": "False: it is polled",
    "max_retries": "of a task's MaxRetriesExceededError, and of a setting",
    "prepare_exception": "of what the tracer hands over",
    "setter": "of a property that is named backend",
}


def asked_names() -> set[str]:
    """Attributes of anything that is named ``backend``, in Celery's source but for its backends."""
    folder = Path(celery.__file__).parent
    names: set[str] = set()
    for file in folder.rglob("*.py"):
        if file.relative_to(folder).parts[0] not in ("backends", "contrib"):
            names |= set(re.findall(r"\bbackend\.([a-zA-Z_]+)", file.read_text()))
    return {name for name in names if hasattr(BaseBackend, name) or name in INHERITED}


def test_each_name_that_celery_asks_for_is_answered() -> None:
    answered = {name for cls in (AskedBackend, AnsweringBackend, LedgerBackend) for name in vars(cls)}
    answered |= vars(LedgerBackend(app)).keys()
    asked = asked_names()
    assert len(asked) > 30
    assert asked - answered - INHERITED.keys() == set()


CHORDS = ("apply_chord", "set_chord_size", "add_to_chord", "on_chord_part_return", "ensure_chords_allowed")


@pytest.mark.parametrize("name", CHORDS)
def test_what_celery_asks_about_chords_is_answered_by_ours(name: str) -> None:
    assert getattr(LedgerBackend, name) is vars(AnsweringBackend)[name]
    assert hasattr(Backend, name)
