"""Readers in other processes than the worker, on real servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import GroupResult

from tests.celery_app import app
from tests.support.harness import PATIENCE, Stack, Worker, wait_until
from tests.testapp import tasks

pytestmark = pytest.mark.servers

ROUNDS = 40
READERS: dict[str, Callable[[str], Any]] = {
    "task.AsyncResult": tasks.effect.AsyncResult,
    "app.AsyncResult": app.AsyncResult,
    "GroupResult": lambda task_id: GroupResult("g", [app.AsyncResult(task_id)], app=app),
    "GroupResult of jobs": lambda task_id: GroupResult("g", [tasks.effect.AsyncResult(task_id)], app=app),
}


@pytest.mark.parametrize("reader", READERS)
def test_c11_a_reader_racing_the_settlement_gets_the_own_exception(stack: Stack, worker: Worker, reader: str) -> None:
    """Between the commit and the tracer's store the backend knew nothing: RuntimeError in 37 of 60 rounds."""
    seen: list[str] = []
    for _ in range(ROUNDS):
        task_id = tasks.out_of_stock.delay("tea").id
        asked = READERS[reader](task_id)
        try:
            while not asked.ready():  # no pause: the first moment at which there is an answer
                pass
            asked.get(timeout=5)
        except Exception as error:
            seen.append(f"{type(error).__qualname__}: {error}")
    assert seen == ["OutOfStock: 0 of tea left"] * ROUNDS


def test_c11_children_are_complete_at_the_first_answer(stack: Stack, worker: Worker) -> None:
    for number in range(ROUNDS // 4):
        result = app.AsyncResult(tasks.starts_another.delay(f"c{number}").id)
        while not result.ready():
            pass
        [child] = result.children
        assert child.get(timeout=PATIENCE) == f"c{number}"


def test_an_atomic_task_shows_its_progress_while_it_runs(stack: Stack, worker: Worker, gate: Path) -> None:
    result = tasks.shows_progress.delay(str(gate), "done")
    for reader in (app.AsyncResult(result.id), tasks.effect.AsyncResult(result.id)):
        wait_until(lambda reader=reader: reader.state == "PROGRESS", "the progress is seen")
        assert reader.info == {"done": 1, "of": 2}
        assert not reader.ready()
    gate.touch()
    assert result.get(timeout=PATIENCE) == "done"
    assert app.AsyncResult(result.id).state == "SUCCESS"


def test_c13_get_of_a_terminated_job_raises(stack: Stack, worker: Worker, gate: Path) -> None:
    result = tasks.shows_progress.delay(str(gate))
    wait_until(lambda: result.state == "PROGRESS", "it runs")
    app.control.revoke(result.id, terminate=True)
    for reader in (tasks.effect.AsyncResult(result.id), app.AsyncResult(result.id)):
        with pytest.raises(TaskRevokedError):
            reader.get(timeout=PATIENCE)


def test_get_answers_soon(stack: Stack, worker: Worker) -> None:
    tasks.effect.delay("warm").get(timeout=PATIENCE)
    took = []
    for number in range(60):
        result = tasks.effect.delay(f"{number}")
        result.get(timeout=PATIENCE)
        answered = stack.database_now()
        # From its end: how long the worker takes for it is another matter.
        took.append((answered - stack.job(result).finished_at).total_seconds())
    took.sort()
    # Celery's backends that ask again and again do so every half second.
    assert took[30] < 0.25, f"p50 {took[30] * 1000:.1f} ms"
