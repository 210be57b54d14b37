"""Tasks of both kinds that stand still until a test lets them go on: for test_control_commands.py."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from reliable_jobs import ReliableTask
from tests.testapp.tasks import wait_for


def _gated(gate: str) -> int:
    wait_for(gate)
    return 1


def _returns() -> int:
    return 1


def _made(kind: str, **options: Any) -> dict[str, Any]:
    return {
        name: shared_task(name=f"gated.{kind}.{name}", **options)(function)
        for name, function in {"gated": _gated, "returns": _returns}.items()
    }


PLAIN = _made("plain")
RELIABLE = _made("reliable", base=ReliableTask)
