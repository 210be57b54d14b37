"""``replace()`` by any canvas: the job's row is held until the last task of the replacement, which has its id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group, shared_task

from reliable_jobs import ReliableTask, lifecycle
from reliable_jobs.models import Job
from reliable_jobs.sweep import pruner
from reliable_jobs.worker.parking import park_message
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs


def note(*args: Any, name: str) -> str:
    Effect.objects.create(name=name)
    return name


plain = shared_task(name="test_replace.plain")(note)
rel = shared_task(base=ReliableTask, name="test_replace.rel")(note)


@shared_task(base=ReliableTask, name="test_replace.fails")
def fails(*args: Any) -> None:
    raise ValueError("no")


@shared_task(base=ReliableTask, name="test_replace.told")
def told(task_id: str) -> None:
    Effect.objects.create(name=f"told {task_id}")


BY: dict[str, Callable[[], Any]] = {
    "chain": lambda: chain(rel.si(name="1"), rel.s(name="2")),
    "plain": lambda: plain.si(name="1"),
    "mixed chain": lambda: chain(rel.si(name="1"), plain.s(name="2"), rel.s(name="3")),
    "plain chain": lambda: chain(rel.si(name="1"), plain.s(name="2"), plain.s(name="3")),
    "plain end": lambda: chain(rel.si(name="1"), rel.s(name="2"), plain.s(name="3")),
    "group": lambda: group(rel.si(name="1"), rel.si(name="2")),
    "chord": lambda: chord([rel.si(name="1"), plain.si(name="2")], rel.s(name="3")),
    "chain to a group": lambda: chain(rel.si(name="1"), group(rel.s(name="2"), rel.s(name="3"))),
    "nested": lambda: chain(rel.si(name="1"), becomes.si("chain")),
    "failure": lambda: chain(rel.si(name="1"), fails.si(), rel.s(name="never")),
}


@shared_task(base=ReliableTask, bind=True, name="test_replace.becomes")
def becomes(self: Any, by: str) -> Any:
    Effect.objects.create(name="before")
    raise self.replace(BY[by]())


@pytest.mark.promise("I3")
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize(("by", "names"), [(by, None) for by in BY if by != "failure"])
def test_a_job_replaces_itself_by_a_canvas(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, by: str, names: Any, atomic: bool
) -> None:
    monkeypatch.setattr(becomes, "atomic", atomic)
    result = chain(becomes.si(by), rel.s(name="next")).apply_async(link=rel.si(name="link"))
    replaced = result.parent.id
    (first,) = jobs.take()
    jobs.deliver(first)
    held = jobs.row(replaced)
    if by != "plain":
        assert (held.due_at, held.content_version, held.reason) == (None, 1, "replaced")
    if held.status == "waiting" and by != "plain":
        jobs.sweep()
        pruner.prune()
        assert not lifecycle.requeue([held.pk], "default", actor="me").done
    jobs.deliver(first, redelivered=True)
    jobs.finish()
    seen = sorted(Effect.objects.values_list("name", flat=True))
    befores = 2 if by == "nested" else 1
    numbers = {"plain": "1", "chain": "12", "group": "12", "nested": "112"}.get(by, "123")
    assert seen == sorted([*numbers, *["before"] * befores, "link", "next"])
    assert jobs.row(replaced).status in ("succeeded", "sent")
    assert jobs.row(result).status == "succeeded"
    # Nothing was there to be done twice.
    assert not Job.objects.unfinished().exists()


@pytest.mark.promise("I7")
def test_a_held_row_fails_with_a_step_of_its_replacement(jobs: InProcess) -> None:
    result = becomes.s("failure").on_error(told.s()).apply_async()
    jobs.finish()
    row = jobs.row(result)
    assert (row.status, row.reason) == ("failed", "earlier step")
    assert jobs.kinds(result) == ["failure"]
    assert not Effect.objects.filter(name="never").exists()
    assert Effect.objects.filter(name__startswith="told ").count() == 1


def test_a_held_row_can_be_cancelled_and_its_last_step_does_not_run(jobs: InProcess) -> None:
    result = becomes.delay("chain")
    jobs.deliver(jobs.take()[0])
    lifecycle.cancel([jobs.row(result).pk], "default", actor="me")
    jobs.finish()
    assert sorted(Effect.objects.values_list("name", flat=True)) == ["1", "before"]
    assert jobs.row(result).status == "cancelled"


@pytest.mark.promise("I3")
def test_a_copy_that_is_handed_back_begins_no_replaced_job_anew(jobs: InProcess) -> None:
    """Redelivered to an old worker, which does not know the task; or the worker failed behind the job's commit."""
    result = becomes.delay("chain")
    (message,) = jobs.take()
    jobs.deliver(message)
    park_message(message, "unknown task", "old worker")
    row = jobs.row(result)
    assert (row.due_at, row.reason) == (None, "replaced")
    jobs.finish()
    assert sorted(Effect.objects.values_list("name", flat=True)) == ["1", "2", "before"]


@pytest.mark.promise("I7")
def test_a_held_row_is_cancelled_with_a_step_of_its_replacement(jobs: InProcess) -> None:
    result = chain(becomes.si("chain"), rel.s(name="next")).apply_async()
    jobs.deliver(jobs.take()[0])
    first = Job.objects.get(task=rel.name, status="waiting")
    lifecycle.cancel([first.pk], "default", actor="me")
    ends = [(jobs.row(one).status, jobs.row(one).reason) for one in (result.parent, result)]
    assert ends == [("cancelled", "earlier step")] * 2
    lifecycle.requeue([first.pk], "default", actor="me")
    jobs.finish()
    assert (jobs.row(result.parent).status, jobs.row(result).status) == ("succeeded", "succeeded")
    assert sorted(Effect.objects.values_list("name", flat=True)) == ["1", "2", "before", "next"]
