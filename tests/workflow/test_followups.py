"""What follows a job is written with its settlement: callbacks, chains and errbacks of every shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, group, shared_task, signature
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from django.db import transaction

from reliable_jobs import ReliableTask
from reliable_jobs import jobs as public
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.run import settling
from reliable_jobs.workflow import followups
from reliable_jobs.workflow.following import Ended, Following
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs


class Wrong(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def note(*args: Any, name: str) -> str:
    Effect.objects.create(name=name)
    return name


def fail(*args: Any) -> None:
    raise Wrong(7)


def told_the_id(task_id: str) -> None:
    Effect.objects.create(name=f"old {task_id}")


def told_all(request: Any, exc: Any, traceback: str, note: str = "") -> None:
    shown = f"{type(exc).__name__} {getattr(exc, 'number', exc)} {'raise Wrong' in traceback}"
    Effect.objects.create(name=f"new {request.id} {request.task} {list(request.args)} {shown} {note}")


plain = shared_task(name="test_followups.plain")(note)
rel = shared_task(base=ReliableTask, name="test_followups.rel")(note)
fails = shared_task(base=ReliableTask, name="test_followups.fails")(fail)
fails_outside = shared_task(base=ReliableTask, atomic=False, name="test_followups.fails_outside")(fail)
ERRBACKS: dict[str, Any] = {
    "old": shared_task(base=ReliableTask, name="test_followups.old")(told_the_id),
    "old plain": shared_task(name="test_followups.old_plain")(told_the_id),
    "new": shared_task(base=ReliableTask, name="test_followups.new")(told_all),
    "new plain": shared_task(name="test_followups.new_plain")(told_all),
}


def noted(jobs: InProcess) -> list[str]:
    return sorted(Effect.objects.values_list("name", flat=True))


def break_off_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first settlement's transaction breaks at its end; says how many other rows it had written."""
    end, written = settling.end, []

    def broken(task: Any, run: Any, ended: Any) -> bool:
        won = end(task, run, ended)
        if not written:
            written.append(Job.objects.exclude(pk=run.claim.job.pk).count())
            raise RuntimeError("no power")
        return won

    monkeypatch.setattr(settling, "end", broken)
    return written


# --- after a success --------------------------------------------------------------------------------------------------

FOLLOWING: dict[str, Callable[[], Any]] = {
    "link": lambda: rel.apply_async(kwargs={"name": "a"}, link=rel.si(name="b")),
    "plain link": lambda: rel.apply_async(kwargs={"name": "a"}, link=plain.si(name="b")),
    "unknown link": lambda: rel.apply_async(kwargs={"name": "a"}, link=signature("test_followups.unknown", app=app)),
    "links": lambda: rel.apply_async(kwargs={"name": "a"}, link=[plain.si(name="b"), rel.si(name="c")]),
    "group": lambda: rel.apply_async(kwargs={"name": "a"}, link=group(plain.si(name="b"), rel.si(name="c"))),
    "chain": lambda: (rel.s(name="a") | plain.s(name="b") | rel.s(name="c")).apply_async(),
    "chain of a group": lambda: chain(rel.s(name="a"), group(rel.s(name="b"), plain.s(name="c"))).apply_async(),
}


@pytest.mark.promise("I3")
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("shape", FOLLOWING)
def test_what_follows_commits_with_the_settlement(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, shape: str, atomic: bool
) -> None:
    monkeypatch.setattr(rel, "atomic", atomic)
    first = FOLLOWING[shape]()
    job_id = first.id if not hasattr(first, "parent") or first.parent is None else root_of(first)
    (message,) = jobs.take()
    written = break_off_once(monkeypatch)
    jobs.deliver(message)
    assert written[0] > 0
    row = jobs.row(job_id)
    assert (row.status, Job.objects.exclude(pk=job_id).exclude(status="failed").count()) == ("failed", 0)
    public.requeue([job_id], actor="me")
    if shape == "unknown link":
        finish_without_unknown(jobs)
    else:
        jobs.finish()
    assert jobs.row(job_id).status == "succeeded"
    # Nothing is left to a second delivery, whatever Celery makes of it.
    before = Job.objects.count()
    jobs.deliver(message, redelivered=True)
    assert (Job.objects.count(), jobs.take()) == (before, [])
    children = Job.objects.filter(parent_id=job_id)
    assert children.exists()
    assert {str(child.root_id) for child in children} == {job_id}


def root_of(result: Any) -> str:
    while result.parent is not None:
        result = result.parent
    return str(result.id)


def finish_without_unknown(jobs: InProcess) -> None:
    Job.objects.unfinished().update(due_at="2001-01-01T00:00:00+00:00", sends=0)
    jobs.sweep()
    for message in jobs.take():
        if message.headers["task"] in app.tasks:
            jobs.deliver(message)
    assert Job.objects.get(task="test_followups.unknown").status == "sent"
    jobs.take()


@pytest.mark.promise("I3")
def test_celerys_deduplication_has_nothing_to_dispatch(jobs: InProcess) -> None:
    with_it = {"worker_deduplicate_successful_tasks": True, "task_acks_late": True}
    before = {name: getattr(app.conf, name) for name in with_it}
    app.conf.update(with_it)
    try:
        rel.apply_async(kwargs={"name": "a"}, link=plain.si(name="b"))
        (message,) = jobs.take()
        for _ in range(3):
            jobs.deliver(message, redelivered=True)
        jobs.work()
        assert noted(jobs) == ["a", "b"]
    finally:
        app.conf.update(before)


def test_a_priority_is_inherited_where_the_project_says_so(jobs: InProcess) -> None:
    app.conf.task_inherit_parent_priority = True
    try:
        first = rel.apply_async(kwargs={"name": "a"}, priority=4, link=[plain.si(name="b"), rel.si(name="c")])
        jobs.deliver(jobs.take()[0])
        assert set(Job.objects.exclude(pk=first.id).values_list("priority", flat=True)) == {4}
    finally:
        app.conf.task_inherit_parent_priority = False


def test_stamps_travel_with_what_follows(jobs: InProcess) -> None:
    workflow = rel.s(name="a") | plain.s(name="b")
    workflow.stamp(tenant="north")
    workflow.apply_async()
    jobs.deliver(jobs.take()[0])
    (message,) = jobs.take()
    assert (message.headers["stamps"], message.headers["stamped_headers"]) == ({"tenant": "north"}, ["tenant"])


def test_c9_a_requeued_step_runs_again_and_what_it_has_started_stays(jobs: InProcess) -> None:
    result = (rel.s(name="a") | rel.s(name="b")).apply_async()
    jobs.finish()
    public.requeue([result.parent.id], actor="me")
    jobs.finish()
    assert noted(jobs) == ["a", "a", "b"]
    assert set(Job.objects.values_list("status", flat=True)) == {"succeeded"}


# --- after a failure --------------------------------------------------------------------------------------------------


@pytest.mark.promise("I3")
@pytest.mark.parametrize("task", [fails, fails_outside])
@pytest.mark.parametrize("kind", ERRBACKS)
def test_an_errback_is_a_job_that_is_told_of_the_failure(jobs: InProcess, kind: str, task: Any) -> None:
    errback = ERRBACKS[kind]
    kwargs = {"note": "mine"} if kind.startswith("new") else {}
    result = task.apply_async((1, 2), link_error=errback.s(**kwargs))
    (message,) = jobs.take()
    jobs.deliver(message)
    child = Job.objects.get(parent_id=result.id)
    assert (child.errback_of is not None, str(child.root_id)) == (kind.startswith("new"), result.id)
    jobs.deliver(message, redelivered=True)
    jobs.finish()
    new = f"new {result.id} {task.name} [1, 2] Wrong 7 True mine"
    assert noted(jobs) == [new if kind.startswith("new") else f"old {result.id}"]


@pytest.mark.promise("I3")
def test_an_errback_commits_with_the_failure_or_not_at_all(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    result = fails.apply_async(link_error=ERRBACKS["new"].s())
    (message,) = jobs.take()
    written = break_off_once(monkeypatch)
    jobs.deliver(message)
    assert (written, jobs.row(result).status) == ([1], "failed")
    assert Job.objects.exclude(pk=result.id).count() == 1


def test_an_errback_that_cannot_be_applied_holds_up_no_other(jobs: InProcess) -> None:
    broken = {"task": ERRBACKS["old"].name, "args": 5, "kwargs": {}, "options": {}, "subtask_type": None}
    result = fails.apply_async(link_error=[broken, ERRBACKS["old"].s()])
    jobs.finish()
    assert jobs.row(result).status == "failed"
    assert noted(jobs) == [f"old {result.id}"]
    assert JobEvent.objects.filter(job_id=result.id, detail__contains="errback can't be applied").count() == 1


@pytest.mark.promise("I7")
def test_a_misshapen_chain_does_not_keep_a_failure_from_being_recorded(jobs: InProcess) -> None:
    row = jobs.row(rel.delay(name="a"))
    ended = Ended(app, "default", row.pk, str(row.pk), None, row.queue)
    with transaction.atomic():
        followups.after_failure(ended, Following(chain=({"subtask_type": "group", "kwargs": 5},)), Wrong(7), "")
    assert JobEvent.objects.filter(job=row, detail__contains="later steps").count() == 1


@pytest.mark.promise("I7")
def test_the_later_steps_of_a_failed_chain_are_failed(jobs: InProcess) -> None:
    result = (rel.s(name="a") | fails.s() | plain.s(name="c") | rel.s(name="d")).apply_async()
    jobs.finish()
    last, third = jobs.row(result), jobs.row(result.parent)
    assert (last.status, last.reason, third.status, third.relay_only) == ("failed", "earlier step", "failed", True)
    assert result.parent.parent.id in last.error
    with pytest.raises(Wrong):
        result.get(timeout=1)
    assert isinstance(AsyncResult(result.parent.id, app=app).result, Wrong)


def test_a_requeued_step_revives_the_later_ones(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    result = (fails.s() | rel.s(name="b")).apply_async()
    jobs.finish()
    monkeypatch.setattr(app.tasks[fails.name], "run", lambda *args: 1)
    public.requeue([result.parent.id], actor="me")
    jobs.finish()
    assert (noted(jobs), jobs.row(result).status) == (["b"], "succeeded")


@pytest.mark.promise("I7")
def test_a_step_that_was_never_started_is_not_requeued_by_itself(jobs: InProcess) -> None:
    result = (rel.s(name="a") | fails.s() | rel.s(name="c")).apply_async()
    jobs.finish()
    report = public.requeue([result.id, result.parent.id], actor="me")
    assert [str(one) for one in report.done] == [result.parent.id]
    assert "requeue that one" in report.skipped[jobs.row(result).pk]
    assert jobs.row(result).status == "failed"


@pytest.mark.promise("I7")
def test_the_later_steps_of_a_cancelled_one_end_and_come_back(jobs: InProcess) -> None:
    workflow = rel.s(name="a") | rel.s(name="b") | group(rel.s(name="c"), plain.s(name="d")) | rel.s(name="e")
    result = workflow.apply_async()
    jobs.deliver(jobs.take()[0])
    second = Job.objects.get(status="waiting")
    assert public.cancel([second.pk], actor="me").done == [second.pk]
    row = jobs.row(result)
    assert (row.status, row.reason) == ("cancelled", "earlier step")
    assert str(second.pk) in row.error
    with pytest.raises(TaskRevokedError):
        result.get(timeout=1)
    assert "requeue that one" in public.requeue([row.pk], actor="me").skipped[row.pk]
    jobs.finish()
    assert noted(jobs) == ["a"]
    public.requeue([second.pk], actor="me")
    jobs.finish()
    assert noted(jobs) == ["a", "b", "c", "d", "e"]


@pytest.mark.promise("I7")
@pytest.mark.parametrize("ending", ["crashes", "expiry", "misfit", "unknown"])
def test_an_ending_that_no_function_reported_calls_the_errbacks(
    jobs: InProcess, ending: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.RELIABLE_JOBS = {"MAX_CRASHES": 1, "DEPLOY_GRACE": 0.001}
    result = rel.s(name="x").on_error(ERRBACKS["old"].s()).apply_async(expires=3600)
    (message,) = jobs.take()
    row = Job.objects.filter(pk=result.id)
    if ending == "crashes":
        row.update(crashes=1)
    elif ending == "expiry":
        row.update(expires_at="2001-01-01T00:00:00+00:00")
    elif ending == "misfit":
        monkeypatch.setattr(type(app.tasks[rel.name]), "argument_check", staticmethod(lambda: None))
        jobs.deliver(message)
        row.update(due_at="2001-01-01T00:00:00+00:00")
    else:
        from reliable_jobs.worker.parking import park_message

        park_message(message, "unknown", "me")
        row.update(due_at="2001-01-01T00:00:00+00:00")
        park_message(message, "unknown", "me")
    if ending != "unknown":
        jobs.deliver(jobs.message(result))
    assert jobs.row(result).is_final, jobs.row(result).status
    jobs.finish()
    assert noted(jobs) == [f"old {result.id}"]
    assert HEADER in message.headers
