"""Tasks of both kinds, for the tests of this folder whose worker is a process: ``celery worker -I``."""

from __future__ import annotations

from typing import Any

from celery import group, shared_task

from reliable_jobs import ReliableTask
from tests.testapp.tasks import OutOfStock, wait_for


def _adds(x: int, y: int) -> int:
    return x + y


def _sums(values: Any) -> int:
    return sum(values)


def _runs_out(article: str) -> None:
    raise OutOfStock(article, 0)


def _shows(self: Any, gate: str) -> str:
    self.update_state(state="PROGRESS", meta={"done": 1})
    wait_for(gate)
    return "shown"


def _starts(self: Any, n: int) -> int:
    group(of_kind(self)["adds"].s(n, m) for m in (1, 2)).delay()
    of_kind(self)["adds"].delay(n, 3)
    return n


def _speaks_for(self: Any, other: str) -> None:
    """Says something of another task."""
    self.update_state(task_id=other, state="SPOKEN", meta={"by": self.name})


FUNCTIONS = {"adds": _adds, "sums": _sums, "runs_out": _runs_out}
BOUND = {"shows": _shows, "starts": _starts, "speaks_for": _speaks_for}


def _made(kind: str, **options: Any) -> dict[str, Any]:
    def make(name: str, function: Any, **more: Any) -> Any:
        return shared_task(name=f"asked.{kind}.{name}", **options, **more)(function)

    made = {name: make(name, function) for name, function in FUNCTIONS.items()}
    made |= {name: make(name, function, bind=True) for name, function in BOUND.items()}
    made["ignored"] = make("ignored", _adds, ignore_result=True)
    return made


plain = _made("plain")
reliable = _made("reliable", base=ReliableTask)


def of_kind(task: Any) -> dict[str, Any]:
    return reliable if getattr(task, "writes_outbox", False) else plain
