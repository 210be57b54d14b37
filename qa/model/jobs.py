"""The bodies of the model's jobs. Each has effects that show if they happen twice, or for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import shared_task

from qa.model.actors import passes
from reliable_jobs import ReliableTask
from reliable_jobs.models import Job
from tests.testapp.models import Effect

if TYPE_CHECKING:
    from qa.model.world import World

#: The world whose jobs these are.
world: World | None = None

SEEN = ("status", "requeues", "content_version", "token", "due_at")
ATOMIC = ("plain", "changes", "fails", "flaky", "snoozes", "spawns")


@shared_task(base=ReliableTask, bind=True, ignore_result=True)
def atomic(self: Any, kind: str, content: int = 0, of: str = "") -> None:
    """Args: ``content`` counts the retries with other arguments; ``of`` is the parent's id and generation."""
    assert world is not None
    row = Job.objects.values(*SEEN).get(pk=self.request.id)
    world.in_body(self.request, row, content)
    mine = f"{self.request.id}/{row['requeues']}"
    pieces = Effect.objects.filter(name=mine, value="piece").count()
    if kind == "snoozes" and pieces == 0:
        Effect.objects.create(name=mine, value="piece")
        passes("body")
        raise self.snooze(3)
    Effect.objects.create(name=mine, value="done")
    if kind == "spawns":
        atomic.delay("plain", of=mine)
    passes("body")
    if kind == "fails":
        raise ValueError("as it was told")
    if kind == "flaky" and self.request.retries == 0:
        raise self.retry(countdown=5, exc=ValueError("the first time"))
    if kind == "changes" and content == 0:
        raise self.retry(args=("changes", 1), countdown=0)


@shared_task(base=ReliableTask, bind=True, ignore_result=True, atomic=False)
def outside(self: Any, kind: str = "outside", content: int = 0) -> None:
    """Not atomic: an effect in a fenced transaction, and ways to come to grief before, in and after it."""
    assert world is not None
    row = Job.objects.values(*SEEN).get(pk=self.request.id)
    world.in_body(self.request, row, content)
    passes("body")
    with self.fenced():
        world.in_fence(Job.objects.values_list("token", flat=True).get(pk=self.request.id))
        Effect.objects.create(name=f"{self.request.id}/{row['requeues']}", value="done")
        passes("fenced")
    passes("late")
