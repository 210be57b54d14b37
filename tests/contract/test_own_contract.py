"""Plain and reliable tasks side by side in one worker: the same hooks, signals and events in the same order, the same
request, the same answer; or a reason in the docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Task, signals
from celery.app.task import Context

from tests.contract import differences, hearing
from tests.contract.cases import CASES, describe
from tests.contract.differences import DIFFERENCES
from tests.contract.hearing import Heard, hear_all
from tests.support.harness import Stack

pytestmark = pytest.mark.servers

WHAT = ("story", "events", "answer")


@pytest.fixture(scope="module")
def heard(_queue_of_module: Stack, django_db_blocker: Any, tmp_path_factory: Any) -> Iterator[dict[Any, Heard]]:
    stack = _queue_of_module
    with django_db_blocker.unblock(), stack.active():
        stack.declare()
        stack.clean()
        yield hear_all(stack, tmp_path_factory.mktemp("notes") / "notes")


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("case", CASES)
def test_a_reliable_task_is_like_a_plain_one(heard: dict[Any, Heard], case: str, what: str) -> None:
    plain, reliable = (getattr(heard[case, kind], what) for kind in ("plain", "reliable"))
    if (case, what) in DIFFERENCES:
        assert reliable != plain, "no difference any more"
    else:
        assert reliable == plain


def test_a_task_without_reruns_is_begun_once(heard: dict[Any, Heard]) -> None:
    assert [text for text in heard["hard time limit", "reliable"].story if text.startswith("run ")] == ["run 0"]


def test_every_difference_is_of_a_case_and_in_the_docs() -> None:
    assert {case for case, _ in DIFFERENCES} <= set(CASES)
    assert {what for _, what in DIFFERENCES} <= set(WHAT)
    assert differences.PAGE.read_text() == differences.page(), "run: python -m tests.contract.differences"


# --- the list is complete ---------------------------------------------------------------------------------------------

COVERED = {name for case in CASES.values() for name in (*case.covers, *case.made, *case.call)}
#: Attributes of tasks that no case asks after, and why.
ATTRIBUTES = {
    "name": "every case has one",
    "app": "read only",
    "from_config": "Celery's own",
    "request": "the cases that show the request",
    "request_stack": "Celery's own",
    "backend": "tests/results/test_ledger_backend.py",
    "Request": "ReliableTask has one of its own; worker/requests.py",
    "Strategy": "Celery's, unchanged",
    "rate_limit": "tests/contract/test_control_commands.py",
    "abstract": "read when a class is made",
    "acks_on_failure": "check W033",
    "acks_on_timeout": "a timed-out run's message always goes back: worker/requests.py",
    "store_eager_result": "tests/results/test_answer.py",
    "retry_on_worker_lost": "ReliableTask has it off: see its comment",
    "MaxRetriesExceededError": "an exception, not an option",
    "OperationalError": "an exception, not an option",
}
OPTIONS = {
    "connection": "without effect: the outbox dispatches (docs/settings.md)",
    "producer": "as connection",
    "publisher": "as connection",
}


def test_every_attribute_of_a_task_is_asked_after() -> None:
    public = {name for name, value in vars(Task).items() if not name.startswith("_") and not _is_method(value)}
    public |= {name for name, _ in Task.from_config}
    assert public - COVERED - ATTRIBUTES.keys() == set()


def _is_method(value: Any) -> bool:
    return (callable(value) and not isinstance(value, type)) or isinstance(value, (classmethod, property))


def test_every_option_of_a_call_is_asked_after() -> None:
    text = str(Task.apply_async.__doc__).partition("Arguments:")[2].partition("Returns:")[0]
    options = set(re.findall(r"^\s+(\w+) \(", text, re.MULTILINE))
    assert len(options) > 20
    assert options - COVERED - OPTIONS.keys() == set()


def test_every_hook_is_asked_after() -> None:
    hooks = {name for name in vars(Task) if name.startswith(("on_", "before_", "after_"))} - {"on_bound"}
    assert hooks - COVERED == set()


def test_every_signal_of_tasks_is_noted() -> None:
    noted = {name for name in signals.__all__ if name.startswith("task_") and _has_receiver(getattr(signals, name))}
    elsewhere = {
        "task_rejected": "of messages that are no task: tests/worker/test_bad_messages.py",
        "task_unknown": "as task_rejected",
    }
    assert {name for name in signals.__all__ if name.startswith("task_")} - noted == elsewhere.keys()


def _has_receiver(signal: Any) -> bool:
    return any("tests.contract.tasks" in getattr(receiver, "__module__", "") for _, receiver in signal.receivers or ())


def test_every_field_of_a_request_is_shown() -> None:
    fields = {name for name in vars(Context) if not name.startswith("_") and not callable(getattr(Context, name))}
    shown = describe(Context(id="1"))
    elsewhere = {"id", "root_id", "correlation_id", "reply_to", "properties", "children"}
    assert fields - shown.keys() - elsewhere == set()


def test_an_arrival_is_told_with_the_run_that_it_leads_to() -> None:
    early = ["task_received", "task_prerun", "task_received", "on_retry", "task_prerun"]
    in_turn = ["task_received", "task_prerun", "on_retry", "task_received", "task_prerun"]
    assert hearing._in_turn(early, "task_received", "task_prerun") == in_turn
