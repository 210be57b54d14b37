"""Tasks that stand still at a moment of their lives: for test_readers.py."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from reliable_jobs import ReliableTask
from tests.testapp.tasks import wait_for


@shared_task(base=ReliableTask, name="read.gated")
def gated(gate: str) -> int:
    wait_for(gate)
    return 0


@shared_task(base=ReliableTask, name="read.tracked", track_started=True)
def tracked(gate: str) -> None:
    wait_for(gate)


@shared_task(base=ReliableTask, name="read.outside", atomic=False)
def outside(gate: str) -> None:
    wait_for(gate)


@shared_task(base=ReliableTask, name="read.shows_outside", atomic=False, bind=True)
def shows_outside(self: Any, gate: str) -> None:
    self.update_state(state="PROGRESS", meta={"done": 1})
    wait_for(gate)


@shared_task(base=ReliableTask, name="read.misfit")
def misfit() -> None:
    """Called with an argument that it can't take."""
