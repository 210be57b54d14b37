"""Flower, as it is: what its buttons and its REST interface do to jobs, and what it shows of them."""

from __future__ import annotations

import functools
import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.app.control import Inspect

from reliable_jobs.models import Job
from tests.celery_app import app
from tests.support.harness import PATIENCE, Stack, Worker, wait_until
from tests.support.harness.process import Process
from tests.testapp import tasks

pytest.importorskip("flower")
pytestmark = pytest.mark.servers

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def _worker_with_events(_queue_of_module: Stack, django_db_blocker: Any) -> Worker:
    with django_db_blocker.unblock(), _queue_of_module.active():
        _queue_of_module.declare()
        return _queue_of_module.worker(concurrency=2, options=["-E"], WORKER_SWEEP_INTERVAL=0.3)


@pytest.fixture(scope="module")
def _flower(_worker_with_events: Worker, _queue_of_module: Stack, django_db_blocker: Any) -> Ask:
    stack = _queue_of_module
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with django_db_blocker.unblock(), stack.active():
        environment = stack.environment(TEST_WORKER_SWEEP_INTERVAL=0)
        environment.update(FLOWER_UNAUTHENTICATED_API="true")
        argv = [sys.executable, "-m", "celery", "-A", "tests.celery_app", "flower"]
        argv += [f"--port={port}", "--address=127.0.0.1", "--inspect_timeout=2000"]
        flower = Process("flower", argv, environment, stack.directory)
    stack.processes.append(flower)

    def ask(path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            error.close()
            raise AssertionError(f"{path}: {error.code}\n{flower.log[-3000:]}") from None

    def knows_the_worker() -> bool:
        assert flower.alive, flower.log
        try:
            return any(_worker_with_events.name in name for name in ask("workers?refresh=1"))
        except OSError:
            return False

    wait_until(knows_the_worker, "Flower knows the worker", every=0.3)
    return ask


@pytest.fixture
def flower(_flower: Ask, stack: Stack) -> Ask:
    """Asks Flower's REST interface: a path, and what to post."""
    return _flower


def shows(flower: Ask, result: Any, state: str) -> bool:
    """Before it has heard of a task, there is no page of it."""
    try:
        return bool(flower(f"task/info/{result.id}")["state"] == state)
    except AssertionError as error:
        if f"{result.id}: 404" not in str(error):
            raise
        return False


@pytest.mark.parametrize("how", ["apply", "async-apply", "send-task"])
def test_a_task_that_flower_starts_is_a_job(stack: Stack, flower: Ask, how: str) -> None:
    answer = flower(f"task/{how}/{tasks.effect.name}", {"args": [how]})
    result = app.AsyncResult(answer["task-id"])
    wait_until(lambda: Job.objects.filter(pk=result.id).exists(), "its row is there")
    job = stack.ends(result)
    assert (job.task, stack.effects(how)) == (tasks.effect.name, 1)
    if how == "apply":
        assert (answer["state"], answer["result"]) == ("SUCCESS", how)


@pytest.mark.promise("I7")
def test_flower_revokes_what_waits(stack: Stack, flower: Ask) -> None:
    result = tasks.effect.apply_async(("late",), countdown=600)
    flower(f"task/revoke/{result.id}", {})
    assert stack.ends(result, "cancelled").reason == "revoked"


@pytest.mark.promise("I7")
def test_flower_terminates_what_runs(stack: Stack, flower: Ask, gate: Path, outside: Path) -> None:
    result = tasks.gated.delay("runs", str(outside), str(gate))
    wait_until(outside.exists, "it runs")
    flower(f"task/revoke/{result.id}?terminate=true", {})
    assert stack.ends(result, "cancelled").reason == "revoked"
    assert stack.effects("runs") == 0
    wait_until(lambda: shows(flower, result, "REVOKED"), "Flower shows it", every=0.2)


def test_flower_shows_each_state_as_the_row_has_it(stack: Stack, flower: Ask) -> None:
    good, bad = tasks.effect.delay("good"), tasks.out_of_stock.delay("tea")
    stack.ends(good)
    stack.ends(bad, "failed")
    for result, state in ((good, "SUCCESS"), (bad, "FAILURE")):
        wait_until(functools.partial(shows, flower, result, state), "Flower has heard", every=0.2)
        assert flower(f"task/result/{result.id}")["state"] == state
    assert flower(f"task/result/{good.id}")["result"] == "good"
    # Flower hears of every worker of this broker, other tests' too.
    listed = flower("tasks")
    assert [listed[result.id]["state"] for result in (good, bad)] == ["SUCCESS", "FAILURE"]


@pytest.fixture
def inspect(stack: Stack, _worker_with_events: Worker) -> Inspect:
    """Asks the worker by its name: then its answer is waited for."""
    return app.control.inspect(destination=[f"{_worker_with_events.name}@test"], timeout=PATIENCE)


def test_inspect_sees_running_and_reserved_jobs(
    stack: Stack, flower: Ask, inspect: Inspect, gate: Path, outside: Path
) -> None:
    results = [tasks.gated.delay(f"r{number}", str(outside), str(gate)) for number in range(3)]
    wait_until(lambda: outside.exists() and len(outside.read_text().splitlines()) == 2, "two run")

    def ids(what: str) -> set[str]:
        answers = getattr(inspect, what)() or {}
        return {one["id"] for found in answers.values() for one in found}

    everyone = {result.id for result in results}
    wait_until(lambda: (ids("active") | ids("reserved")) & everyone == everyone, "all are seen", every=0.2)
    assert len(ids("active") & everyone) == 2
    query = inspect.query_task(results[0].id)
    # Reserved: a copy of its message, where the machine was so slow that a sweep has sent one.
    (state,) = (state for found in query.values() for state, _ in found.values())
    assert state in ("active", "reserved")
    gate.touch()
    for result in results:
        stack.ends(result)
    assert Job.objects.filter(status="succeeded").count() == 3
