"""Runs the cases in a worker and collects what is heard of each: hooks and signals, events, the answer."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.test import override_settings

from tests.celery_app import app
from tests.contract import cases, notes, tasks
from tests.contract.cases import CASES, Case
from tests.support.harness import Stack, wait_until

KINDS = {"plain": tasks.PLAIN, "reliable": tasks.RELIABLE}
#: Seconds for all of them; one that has not come so far then is compared as it is.
PATIENCE = 240.0
#: What an event says of its task that can be compared.
_FIELDS = (
    "args",
    "kwargs",
    "retries",
    "exception",
    "result",
    "terminated",
    "expired",
    "signum",
    "requeue",
    "routing_key",
)


@dataclasses.dataclass
class Heard:
    """Of one case and kind. In the texts the names of both kinds are the same."""

    story: list[str]
    events: list[Any]
    answer: Any


class Events:
    """Listens to task events until it is left."""

    def __init__(self) -> None:
        self.by_task: dict[str, list[dict[str, Any]]] = {}
        self._ready = threading.Event()

    def _note(self, event: dict[str, Any]) -> None:
        if event["type"].startswith("task-"):
            self.by_task.setdefault(event["uuid"], []).append(event)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": self._note})

            def run() -> None:
                with contextlib.suppress(socket.timeout, OSError):
                    for _ in receiver.consume(limit=None, timeout=None, wakeup=False):
                        pass

            receiver.on_consume_ready = lambda *args, **kwargs: self._ready.set()
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            assert self._ready.wait(PATIENCE)
            try:
                yield
            finally:
                receiver.should_stop = True
                thread.join(PATIENCE)


def hear_all(stack: Stack, path: Path) -> dict[tuple[str, str], Heard]:
    """Run each case once as a plain and once as a reliable task."""
    events = Events()
    with events.listening():
        stack.worker(
            concurrency=2,
            options=["-E", "-I", "tests.contract.tasks"],
            TEST_NOTES=str(path),
            WORKER_SWEEP_INTERVAL=0.2,
            GRACE=60,
        )
        ids: dict[tuple[str, str], str] = {}
        with override_settings(RELIABLE_JOBS={**stack.settings, "GRACE": 60.0}):  # no copies
            for name, case in CASES.items():
                for kind, made in KINDS.items():
                    ids[name, kind] = _call(made[name], case, kind)

        def ended() -> bool:
            heard = notes.read(path)
            return all(
                sum(text.startswith(CASES[name].last) for text in heard.get(task_id, ())) >= CASES[name].runs
                for (name, _), task_id in ids.items()
            )

        with contextlib.suppress(AssertionError):
            wait_until(ended, "all have ended", PATIENCE, every=0.2)
        # Whatever else is to come of them comes before these have ended.
        for _ in range(2):
            marks = [cases.ANOTHER[True].delay(n) for n in range(4)]
            for mark in marks:
                mark.get(timeout=PATIENCE)
                wait_until(
                    lambda mark=mark: len(events.by_task.get(mark.id, ())) >= 3, "its events are heard", PATIENCE
                )
    heard = notes.read(path)
    return {
        (name, kind): Heard(
            _in_turn([_alike(text, kind, task_id) for text in heard.get(task_id, [])], "task_received", "task_prerun"),
            _in_turn(
                [_event(event, kind, task_id) for event in events.by_task.get(task_id, [])],
                "task-received",
                "task-started",
            ),
            _answer(task_id, kind),
        )
        for (name, kind), task_id in ids.items()
    }


def _call(task: Any, case: Case, kind: str) -> str:
    options = {key: value() if callable(value) else value for key, value in case.call.items()}
    if "task_id" in options:
        options["task_id"] = str(uuid.uuid4())
    for link in ("link", "link_error"):
        if link in options:
            options[link] = cases.ANOTHER[kind == "reliable"].s()
    return str(task.apply_async(**options).id)


def _in_turn(told: list[Any], received: str, begun: str) -> list[Any]:
    """Each arrival just before the run that it leads to: Celery sends a retry's message before the run that asked for
    it has told its end, and the worker may have it first."""
    ordered: list[Any] = []
    arrived: list[Any] = []
    for one in told:
        name = one if isinstance(one, str) else one[0]
        if name == received:
            arrived.append(one)
            continue
        if name == begun:
            ordered += arrived
            arrived.clear()
        ordered.append(one)
    return ordered + arrived


def _alike(text: str, kind: str, task_id: str) -> str:
    return text.replace(f"contract.{kind}.", "contract.").replace(task_id, "<id>")


def _event(event: dict[str, Any], kind: str, task_id: str) -> tuple[str, ...]:
    said = [f"{name}={event[name]}" for name in _FIELDS if event.get(name) is not None]
    said += [f"has {name}" for name in ("eta", "expires") if event.get(name)]
    return (event["type"], *(_alike(text, kind, task_id) for text in said))


def _answer(task_id: str, kind: str) -> tuple[str, ...]:
    result = app.AsyncResult(task_id)
    children = [type(child).__name__ for child in result.children or ()]
    return (result.state, _alike(tasks.shown(result.result), kind, task_id), f"{len(children)} children")
