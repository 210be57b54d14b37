"""Tasks of the workload's workflows. Each writes one effect, so that what is missing or doubled is seen."""

from __future__ import annotations

import time
from typing import Any

from celery import chord, shared_task

from qa.chaos.tasks import on_record
from reliable_jobs import ReliableTask
from tests.testapp.models import Effect


@shared_task(base=ReliableTask, bind=True)
def step(self: Any, name: str, seconds: float = 0.0) -> str:
    with on_record(self, name):
        Effect.objects.create(name=name, value=self.request.id)
        time.sleep(seconds)
    return name


@shared_task(base=ReliableTask, bind=True)
def gather(self: Any, values: Any, name: str, expected: Any) -> Any:
    """A chord's body, or a later step: what came before must be just this."""
    if values != expected:
        raise ValueError(f"{name} was called with {values!r}, not with {expected!r}")
    with on_record(self, name):
        Effect.objects.create(name=name, value=self.request.id)
    return values


@shared_task(base=ReliableTask, bind=True)
def becomes(self: Any, name: str, seconds: float = 0.0) -> Any:
    """Is replaced by a chord, whose body's value is its own."""
    with on_record(self, name):
        Effect.objects.create(name=name, value=self.request.id)
        time.sleep(seconds)
    names = [f"{name}/{number}" for number in range(2)]
    return self.replace(chord([step.si(one, seconds) for one in names], gather.s(f"{name}/in place", names)))


@shared_task(base=ReliableTask, bind=True)
def breaks(self: Any, *args: Any) -> None:
    raise ValueError("planned: this part is to fail")


@shared_task(base=ReliableTask)
def told_by_id(task_id: str, name: str) -> None:
    """An errback of Celery's old style."""
    Effect.objects.create(name=name, value=task_id)


@shared_task(base=ReliableTask)
def told_of_error(request: Any, error: Any, traceback: Any, name: str) -> None:
    """An errback of Celery's new style: it gets the exception."""
    Effect.objects.create(name=f"{name}/{type(error).__name__}", value=request.id)


@shared_task(base=ReliableTask)
def finished(outcomes: list[dict[str, Any]], name: str) -> None:
    """What on_finished() calls."""
    ends = ",".join(sorted(one["status"] for one in outcomes))
    Effect.objects.create(name=f"{name}/{ends}", value="")
