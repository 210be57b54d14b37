"""Each control command, with plain and with reliable tasks in one worker: the same answer and the same effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.worker.control import Panel
from django.test import override_settings

from tests.celery_app import app
from tests.contract.gated import PLAIN, RELIABLE
from tests.support.harness import PATIENCE, Stack, Worker, wait_until

pytestmark = pytest.mark.servers

KINDS = {"plain": PLAIN, "reliable": RELIABLE}
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def _worker(_queue_of_module: Stack, django_db_blocker: Any) -> Iterator[Worker]:
    stack = _queue_of_module
    with django_db_blocker.unblock(), stack.active():
        stack.declare()
        worker = stack.worker(
            options=["-E", "-I", "tests.contract.gated"], WORKER_SWEEP_INTERVAL=0.2, LEASE=0.5, GRACE=60
        )
    yield worker
    stack.end_processes([worker])


@pytest.fixture
def node(_worker: Worker, stack: Stack) -> Iterator[str]:
    with override_settings(RELIABLE_JOBS={**stack.settings, "GRACE": 60.0}):  # no copies
        yield f"{_worker.name}@test"


@pytest.fixture
def holder(_worker: Worker, node: str) -> Worker:
    return _worker


def ask(node: str, command: str, **arguments: Any) -> Any:
    """One worker's answer to a command."""
    (answer,) = app.control.broadcast(command, arguments=arguments, destination=[node], reply=True, timeout=PATIENCE)
    return answer[node]


def known(node: str, task_id: str) -> str | None:
    found = ask(node, "query_task", ids=[task_id]).get(task_id)
    return found and found[0]


def running(node: str, task: Any, gate: Path) -> Any:
    result = task.delay(str(gate))
    wait_until(lambda: known(node, result.id) == "active", "it runs")
    return result


# --- what concerns single tasks ---------------------------------------------------------------------------------------


@both
def test_active_reserved_and_query_task_show_it(node: str, kind: str, gate: Path) -> None:
    first = running(node, KINDS[kind]["gated"], gate)
    second = KINDS[kind]["gated"].delay(str(gate))
    wait_until(lambda: known(node, second.id) == "reserved", "the worker has it")
    (shown,) = ask(node, "active")
    assert (shown["id"], shown["name"], shown["args"]) == (first.id, KINDS[kind]["gated"].name, [str(gate)])
    assert [one["id"] for one in ask(node, "reserved") if one["id"] != first.id] == [second.id]
    gate.touch()
    wait_until(lambda: known(node, second.id) is None, "both have ended")


@both
def test_scheduled_shows_plain_tasks_only(node: str, kind: str) -> None:
    """A reliable task's delay is spent in its row: no worker holds it."""
    result = KINDS[kind]["returns"].apply_async(countdown=600)
    if kind == "plain":
        wait_until(lambda: known(node, result.id), "the worker has it")
        app.control.revoke(result.id)
    shown = [one["request"]["id"] for one in ask(node, "scheduled")]
    assert (result.id in shown) is (kind == "plain")


@both
def test_registered_names_it(node: str, kind: str) -> None:
    # A limit that a neighbour has set and taken back stands behind the name.
    assert KINDS[kind]["returns"].name in {name.partition(" ")[0] for name in ask(node, "registered")}


@both
def test_rate_limit_holds_it_back(holder: Worker, node: str, kind: str) -> None:
    task = KINDS[kind]["returns"]
    assert "ok" in ask(node, "rate_limit", task_name=task.name, rate_limit="1/h")
    try:
        task.delay().get(timeout=PATIENCE)
        second = task.delay()
        holder.wait_for_line(f"{second.id}] received")
        assert not second.ready()
    finally:
        assert "ok" in ask(node, "rate_limit", task_name=task.name, rate_limit="0")
    assert task.delay().get(timeout=PATIENCE) == 1, "what is held stays so for its hour"


@both
def test_time_limit_is_taken(node: str, kind: str) -> None:
    """Celery's worker reads a task's limits when it starts to consume: running ones go on as they were."""
    task = KINDS[kind]["returns"]
    assert "ok" in ask(node, "time_limit", task_name=task.name, hard=20, soft=None)
    assert task.delay().get(timeout=PATIENCE) == 1


@both
def test_revoke_keeps_a_waiting_one_from_running(node: str, kind: str, gate: Path) -> None:
    running(node, KINDS[kind]["gated"], gate)
    result = KINDS[kind]["gated"].delay(str(gate))
    wait_until(lambda: known(node, result.id) == "reserved", "the worker has it")
    assert "ok" in ask(node, "revoke", task_id=result.id)
    assert result.id in ask(node, "revoked")
    gate.touch()
    wait_until(lambda: app.AsyncResult(result.id).state == "REVOKED", "it is revoked")


@both
@pytest.mark.parametrize("command", ["revoke", "terminate"])
def test_terminate_ends_a_running_one(node: str, kind: str, command: str, gate: Path) -> None:
    result = running(node, KINDS[kind]["gated"], gate)
    more = {"terminate": True} if command == "revoke" else {}
    assert "ok" in ask(node, command, task_id=result.id, signal="SIGTERM", **more)
    wait_until(lambda: app.AsyncResult(result.id).state == "REVOKED", "it is revoked")


@both
def test_revoke_by_stamped_headers(node: str, kind: str, gate: Path) -> None:
    running(node, KINDS[kind]["gated"], gate)
    stamped = KINDS[kind]["gated"].s(str(gate))
    stamped.stamp(tenant=kind)
    result = stamped.apply_async()
    wait_until(lambda: known(node, result.id) == "reserved", "the worker has it")
    ask(node, "revoke_by_stamped_headers", headers={"tenant": kind})
    gate.touch()
    wait_until(lambda: app.AsyncResult(result.id).state == "REVOKED", "it is revoked")


# --- what concerns the worker -----------------------------------------------------------------------------------------


def is_text(answer: Any) -> bool:
    return isinstance(answer, str) and bool(answer)


def is_ok(answer: Any) -> bool:
    return isinstance(answer, dict) and "ok" in answer


#: By command: its arguments, and what its answer must be.
OF_THE_WORKER: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "active_queues": ({}, lambda answer: [queue["name"] for queue in answer] == [app.conf.task_default_queue]),
    "add_consumer": ({"queue": "contract.other"}, is_ok),
    "autoscale": ({"max": 2, "min": 1}, lambda answer: "error" in answer),  # without --autoscale
    "cancel_consumer": ({"queue": "contract.other"}, is_ok),
    "clock": ({}, lambda answer: answer["clock"] > 0),
    "conf": ({}, lambda answer: len(answer) > 5),
    "disable_events": ({}, lambda answer: "ok" in answer),
    "election": ({"id": "1", "topic": "task", "action": None}, lambda answer: answer is None),
    "enable_events": ({}, lambda answer: "ok" in answer),
    "heartbeat": ({}, lambda answer: answer is None),
    "hello": ({"from_node": "nobody@test", "revoked": {}}, lambda answer: "clock" in answer),
    "memdump": ({}, lambda answer: answer is not False),
    "memsample": ({}, lambda answer: answer is not False),
    "objgraph": ({}, lambda answer: answer is not False),
    "ping": ({}, lambda answer: answer == {"ok": "pong"}),
    "pool_grow": ({"n": 1}, is_ok),
    "pool_restart": ({}, lambda answer: "error" in answer),  # without worker_pool_restarts
    "pool_shrink": ({"n": 1}, is_ok),
    "report": ({}, is_ok),
    "stats": ({}, lambda answer: answer["pool"]["implementation"].startswith("celery.concurrency.prefork")),
}
UNDONE_BY = {
    "add_consumer": "cancel_consumer",
    "cancel_consumer": "add_consumer",
    "disable_events": "enable_events",
    "pool_shrink": "pool_grow",
}
#: Those that nobody answers.
SILENT = ("election", "heartbeat")


def shrunk(node: str) -> Any:
    """The worker's answer when its pool is smaller by one."""
    answers: list[Any] = []

    def asked() -> bool:
        answers.append(ask(node, "pool_shrink", n=1))
        return is_ok(answers[-1])

    wait_until(asked, "a process of the pool is idle")
    return answers[-1]


@pytest.mark.parametrize("command", sorted(OF_THE_WORKER.keys() - set(SILENT)))
def test_the_worker_answers(node: str, command: str) -> None:
    if command in ("memdump", "memsample"):
        pytest.importorskip("psutil")
    if command == "objgraph":
        pytest.importorskip("objgraph")
    arguments, expected = OF_THE_WORKER[command]
    if command in ("cancel_consumer", "pool_shrink"):
        ask(node, UNDONE_BY[command], **arguments)
    # A child that a neighbour has just terminated counts as busy for a moment: the pool does not shrink then.
    answer = shrunk(node) if command == "pool_shrink" else ask(node, command, **arguments)
    if command == "pool_grow":
        shrunk(node)
    elif command in ("add_consumer", "disable_events"):
        ask(node, UNDONE_BY[command], **arguments)
    assert expected(answer), answer
    assert RELIABLE["returns"].delay().get(timeout=PATIENCE) == 1, "and goes on"


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown_lets_a_running_one_end(stack: Stack, kind: str, gate: Path) -> None:
    with stack.own_queue():
        worker = stack.worker(options=["-I", "tests.contract.gated"])
        result = running(f"{worker.name}@test", KINDS[kind]["gated"], gate)
        app.control.shutdown(destination=[f"{worker.name}@test"])
        worker.wait_for_line("Got shutdown from remote")
        gate.touch()
        assert worker.wait() == 0
        assert result.get(timeout=PATIENCE) == 1


def test_every_command_is_tried() -> None:
    text = Path(__file__).read_text()
    single = {name for name in Panel.data if f'ask(node, "{name}"' in text or f'"{name}"' in text}
    commands = {name for name in Panel.data if not name.startswith("dump_")}  # of each another name
    assert commands - single - OF_THE_WORKER.keys() - {"shutdown"} == set()
    assert set(OF_THE_WORKER) <= set(Panel.data)
