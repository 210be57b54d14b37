"""All readers race the settlement of the same job, each in a thread of its own: they get one answer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery.result import GroupResult, ResultSet
from django.db import connections

from tests.celery_app import app
from tests.support.harness import PATIENCE, Stack, Worker
from tests.testapp import tasks

pytestmark = pytest.mark.servers


def when_ready(result: Any) -> Any:
    """The first answer that there is."""
    while not result.ready():
        pass
    return result


def waited(task_id: str) -> Any:
    result = app.AsyncResult(task_id)
    result.get(timeout=PATIENCE, propagate=False)
    return result


def waited_in_a_group(task_id: str) -> Any:
    group = GroupResult("g", [tasks.effect.AsyncResult(task_id)], app=app)
    group.get(timeout=PATIENCE, propagate=False)
    return group[0]


def joined(task_id: str) -> Any:
    results = ResultSet([app.AsyncResult(task_id)], app=app)
    results.join(timeout=PATIENCE, propagate=False)
    return results[0]


READERS: dict[str, Callable[[str], Any]] = {
    "task.AsyncResult": lambda task_id: when_ready(tasks.effect.AsyncResult(task_id)),
    "app.AsyncResult": lambda task_id: when_ready(app.AsyncResult(task_id)),
    "GroupResult": lambda task_id: when_ready(GroupResult("g", [app.AsyncResult(task_id)], app=app))[0],
    "get()": waited,
    "get() of a group": waited_in_a_group,
    "join()": joined,
}
#: Each with the answer that everybody gets.
ENDS: dict[str, tuple[Callable[[], Any], tuple[str, str, str, int]]] = {
    "a value": (lambda: tasks.effect.delay("x"), ("SUCCESS", "str", "x", 0)),
    "the own exception": (lambda: tasks.out_of_stock.delay("tea"), ("FAILURE", "OutOfStock", "0 of tea left", 0)),
    "an end named by the task": (lambda: tasks.names_its_end.delay(), ("FAILURE", "OutOfStock", "3 of tea left", 0)),
    "children": (lambda: tasks.starts_a_group.delay("x"), ("SUCCESS", "list", "", 1)),
}


def answer_of(result: Any) -> tuple[str, str, str, int]:
    value = result.result
    text = "" if isinstance(value, (list, tuple)) else str(value)
    return result.state, type(value).__name__, text, len(result.children or ())


class Reader(threading.Thread):
    """Reads one task after the other."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        super().__init__(daemon=True)
        self._read = read
        self.tasks: queue.Queue[str | None] = queue.Queue()
        self.answers: queue.Queue[Any] = queue.Queue()

    def run(self) -> None:
        while (task_id := self.tasks.get()) is not None:
            try:
                self.answers.put(answer_of(self._read(task_id)))
            except Exception as error:
                self.answers.put(error)
        connections.close_all()


@pytest.mark.parametrize("rounds", [200, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_c11_all_readers_that_race_the_settlement_get_one_answer(stack: Stack, worker: Worker, rounds: int) -> None:
    readers = {name: Reader(read) for name, read in READERS.items()}
    for reader in readers.values():
        reader.start()
    try:
        for number in range(rounds):
            end = list(ENDS)[number % len(ENDS)]
            call, expected = ENDS[end]
            task_id = call().id
            for reader in readers.values():
                reader.tasks.put(task_id)
            got = {name: reader.answers.get(timeout=2 * PATIENCE) for name, reader in readers.items()}
            assert got == dict.fromkeys(READERS, expected), f"round {number}: {end}"
            if number % 500 == 499:
                stack.clean()
    finally:
        for reader in readers.values():
            reader.tasks.put(None)
        for reader in readers.values():
            reader.join(PATIENCE)
