"""Cancelling jobs with what was to follow them, and whole workflows; also while parts of them run."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chord, group, shared_task
from celery.exceptions import TaskRevokedError
from django.db import connection, transaction
from django.utils import timezone

from reliable_jobs import ReliableTask
from reliable_jobs import jobs as public
from reliable_jobs.models import CancelledWorkflow, Job, JobGroup
from reliable_jobs.sweep import pruner
from reliable_jobs.workflow import cancelling
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.support.threads import elsewhere
from tests.testapp.models import Effect
from tests.workflow.chords import body, no_backend, part, told, wrap

jobs = inprocess.jobs

#: What the next run does.
ACT: dict[str, Callable[[], Any]] = {}


@pytest.fixture(autouse=True)
def _no_backend() -> Iterator[None]:
    with no_backend():
        yield
    ACT.clear()


class NotAtomic(ReliableTask):
    atomic = False


def _acts(self: Any, *args: Any) -> Any:
    Effect.objects.create(name="acts")
    return ACT["do"](self)


acts = shared_task(base=NotAtomic, name="test_cancelling.acts", bind=True, max_retries=3)(_acts)
acts_atomically = shared_task(base=ReliableTask, name="test_cancelling.acts_atomically", bind=True)(_acts)


@shared_task(name="test_cancelling.plain")
def plain(*args: Any) -> None: ...


def statuses() -> dict[str, int]:
    found = list(Job.objects.values_list("status", flat=True))
    return {status: found.count(status) for status in sorted(set(found))}


def is_over() -> bool:
    return not Job.objects.unfinished().exists() and not JobGroup.objects.filter(state="open").exists()


# --- single jobs ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I7")
def test_the_later_steps_of_a_cancelled_job_end_too(jobs: InProcess) -> None:
    result = (part.s(1) | wrap.s() | group(wrap.s(), wrap.s()) | body.s()).delay()
    first = Job.objects.get()
    assert public.cancel([first.pk], actor="ann").done == [first.pk]
    assert statuses() == {"cancelled": 3}
    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)


@pytest.mark.promise("I7")
@pytest.mark.parametrize("named", ["the row's own", "another one", "none"])
def test_a_claim_asks_for_the_rows_workflow_whatever_the_message_names(jobs: InProcess, named: str) -> None:
    with transaction.atomic():
        part.delay(1)
        job = Job.objects.get()
        Job.objects.update(root_id=(root := uuid.uuid4()))
        CancelledWorkflow.objects.create(root_id=root, actor="ann", at=timezone.now())
    message = jobs.message(job)
    message.headers["root_id"] = {"the row's own": str(root), "another one": str(uuid.uuid4())}.get(named)
    jobs.deliver(message)
    assert jobs.row(job).status == "cancelled"
    assert not Effect.objects.exists()


def test_a_requeue_of_a_cancelled_step_goes_on_with_the_chain(jobs: InProcess) -> None:
    result = (part.s(1) | wrap.s() | wrap.s()).delay()
    first = Job.objects.get()
    public.cancel([first.pk], actor="ann")
    public.requeue([first.pk], actor="ann")
    jobs.finish()
    assert (result.get(timeout=5), statuses()) == ([[1]], {"succeeded": 3})


# --- whole workflows --------------------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[], Any]] = {
    "a job": lambda: part.s(1),
    "chain": lambda: part.s(1) | wrap.s() | wrap.s(),
    "group": lambda: group(part.s(1), part.s(2) | wrap.s()),
    "chord": lambda: chord([part.s(1), part.s(2)], body.s() | wrap.s()),
    "chord in a chain": lambda: part.s(1) | group(wrap.s(), wrap.s()) | body.s(),
    "three deep": lambda: chord([chord([chord([part.s(1)], wrap.s()), part.s(3)], wrap.s()), part.s(4)], body.s()),
    "delayed": lambda: chord([part.s(1).set(countdown=3600), part.s(2)], body.s()),
    "other tasks": lambda: chord([part.s(1), part.s(2)], plain.s()) | body.s(),
}


@pytest.mark.promise("I7")
@pytest.mark.parametrize("done", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_has_not_ended_ends_cancelled(jobs: InProcess, shape: str, done: int) -> None:
    result = SHAPES[shape]().apply_async()
    for _ in range(done):
        for message in jobs.take()[:1]:
            jobs.deliver(message)
    before, ran = statuses(), Effect.objects.count()
    report = public.cancel_workflow(result, actor="ann")
    assert is_over()
    assert (statuses().get("succeeded", 0), report.skipped) == (before.get("succeeded", 0), {})
    Job.objects.unfinished().update(due_at=timezone.now())
    jobs.sweep()
    jobs.work()
    assert Effect.objects.count() == ran
    jobs.sweep()
    assert CancelledWorkflow.objects.get().over
    if before.get("waiting"):
        for one in getattr(result, "results", None) or [result]:
            if one.state != "SUCCESS":
                with pytest.raises(TaskRevokedError):
                    one.get(timeout=5)


@pytest.mark.parametrize("which", ["part", "group", "body"])
def test_any_id_that_is_written_names_the_workflow(jobs: InProcess, which: str) -> None:
    result = chord([part.s(1), part.s(2)], body.s()).apply_async()
    found = {"part": Job.objects.first(), "group": JobGroup.objects.get()}
    public.cancel_workflow(result.id if which == "body" else found[which].pk, actor="ann")  # type: ignore[union-attr]
    assert (statuses(), JobGroup.objects.get().state) == ({"cancelled": 3}, "cancelled")


def test_an_id_that_nothing_has_is_told(jobs: InProcess) -> None:
    result = (part.s(1) | wrap.s()).delay()
    with pytest.raises(Job.DoesNotExist, match="give cancel_workflow"):
        public.cancel_workflow(result.id, actor="ann")
    assert statuses() == {"waiting": 1}


def test_other_workflows_go_on(jobs: InProcess) -> None:
    cancelled, other = ((part.s(n) | wrap.s()).delay() for n in (1, 2))
    public.cancel_workflow(cancelled, actor="ann")
    jobs.finish()
    assert (other.get(timeout=5), statuses()) == ([2], {"cancelled": 2, "succeeded": 2})


def test_unconfirmed_messages_of_other_tasks_are_not_sent(jobs: InProcess, settings: Any) -> None:
    result = (part.s(1) | group(plain.s(), plain.s())).delay()
    settings.RELIABLE_JOBS = {"DISPATCH": "relay"}
    jobs.work()
    assert Job.objects.filter(relay_only=True, status="waiting").count() == 2
    public.cancel_workflow(result, actor="ann")
    jobs.sweep()
    assert (jobs.take(), statuses()) == ([], {"cancelled": 2, "succeeded": 1})


def test_a_requeue_takes_the_cancel_back(jobs: InProcess) -> None:
    result = (part.s(1) | wrap.s() | wrap.s()).delay()
    public.cancel_workflow(result, actor="ann")
    public.requeue([result.parent.parent.id], actor="ann")
    jobs.finish()
    assert (result.get(timeout=5), CancelledWorkflow.objects.count()) == ([[1]], 0)


def test_what_is_left_of_a_cancel_goes_with_its_rows(jobs: InProcess) -> None:
    public.cancel_workflow((part.s(1) | wrap.s()).delay(), actor="ann")
    jobs.sweep()
    CancelledWorkflow.objects.update(at="2001-01-01T00:00:00+00:00")
    pruner.prune()
    assert CancelledWorkflow.objects.count() == 0


def test_a_cancel_that_broke_off_is_ended_by_the_sweep(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    result = (part.s(1) | wrap.s()).delay()
    with monkeypatch.context() as patch:
        patch.setattr(cancelling, "_end", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            public.cancel_workflow(result, actor="ann")
    jobs.work()
    assert Effect.objects.count() == 0, "no claim"
    jobs.sweep()
    assert is_over()


# --- while a part runs ------------------------------------------------------------------------------------------------


def cancel_all(*args: Any) -> None:
    public.cancel_workflow(Job.objects.filter(task__startswith="test_cancelling.acts").first().root_id, actor="ann")  # type: ignore[union-attr,arg-type]


ENDS: dict[str, Callable[[Any], Any]] = {
    "returns": lambda task: 1,
    "fails": lambda task: 1 / 0,
    "retries": lambda task: task.retry(countdown=3600),
    "snoozes": lambda task: task.snooze(3600),
    "becomes a chain": lambda task: task.replace(part.s(1) | wrap.s()),
    "starts a job": lambda task: part.delay(1).id,
    "starts a delayed job": lambda task: part.apply_async((1,), countdown=3600).id,
    "starts a chord": lambda task: chord([part.s(1), part.s(2)], body.s()).delay().id,
}
FOLLOWED: dict[str, Callable[[Any], Any]] = {
    "chain": lambda first: first | wrap.s() | wrap.s(),
    "links": lambda first: first.set(link=[part.si(1), plain.si()]).on_error(told.s()),
    "part": lambda first: chord([first | wrap.s(), part.s(2)], body.s().on_error(told.s())),
    "group next": lambda first: first | group(wrap.s(), plain.s()),
}


@pytest.mark.promise("I7")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("followed", FOLLOWED)
def test_nothing_follows_a_part_that_runs_at_the_cancel(jobs: InProcess, followed: str, end: str) -> None:
    """Committed between the part's start and its settlement."""

    def do(task: Any) -> Any:
        cancel_all()
        return ENDS[end](task)

    ACT["do"] = do
    FOLLOWED[followed](acts.si()).apply_async()
    jobs.work()
    jobs.sweep()
    jobs.work()
    jobs.sweep()
    assert is_over(), statuses()
    assert list(Effect.objects.values_list("name", flat=True)) == ["acts"]
    assert not Job.objects.filter(task=told.name).exclude(status="cancelled").exists()
    assert CancelledWorkflow.objects.get().over


@pytest.mark.parametrize("followed", FOLLOWED)
def test_the_settlement_itself_writes_what_follows_as_cancelled(jobs: InProcess, followed: str) -> None:
    """Nothing is sent that a claim would have to refuse."""
    ACT["do"] = cancel_all
    FOLLOWED[followed](acts.si()).apply_async()
    first = jobs.take()[0]
    jobs.deliver(first)
    assert (jobs.take(), is_over()) == ([], True)


@pytest.mark.promise("I7")
@pytest.mark.servers
@pytest.mark.skipif(connection.vendor != "postgresql", reason="needs a second writer")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("followed", FOLLOWED)
@pytest.mark.parametrize("task", [acts, acts_atomically], ids=["not atomic", "atomic"])
def test_nothing_starts_that_is_written_at_the_instant_of_the_cancel(
    jobs: InProcess, task: Any, followed: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel commits before, or right after, the settlement has looked for it. In the second case what follows is
    written as if nothing had been: no claim takes it."""
    looks = cancelling.stops
    cancelled = threading.Event()

    def look(ended: Any) -> str | None:
        found = looks(ended) if when == "after" else None
        if not cancelled.is_set():
            cancelled.set()
            elsewhere(cancel_all)
        return looks(ended) if when == "before" else found

    monkeypatch.setattr(cancelling, "stops", look)
    ACT["do"] = lambda task: 1
    FOLLOWED[followed](task.si()).apply_async()
    jobs.work()
    jobs.sweep()
    jobs.work()
    jobs.sweep()
    assert is_over(), statuses()
    assert list(Effect.objects.values_list("name", flat=True)) == ["acts"]
    assert not Job.objects.filter(status="sent").exists()


@pytest.mark.promise("I7")
def test_a_rolled_back_cancel_has_not_happened(jobs: InProcess) -> None:
    result = (part.s(1) | wrap.s()).delay()
    with contextlib.suppress(RuntimeError), transaction.atomic():
        public.cancel_workflow(result, actor="ann")
        raise RuntimeError
    jobs.finish()
    assert result.get(timeout=5) == [1]
