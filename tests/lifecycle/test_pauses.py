"""A paused queue or task (S4): no function starts from the commit of the pause on, and nothing is lost by it."""

from __future__ import annotations

import threading

import pytest
from django.db import connection, transaction
from django.test import override_settings

from reliable_jobs import jobs as public
from reliable_jobs import lifecycle
from reliable_jobs.lifecycle import pauses
from reliable_jobs.models import Job, Pause
from reliable_jobs.status import Reason, Status
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs = inprocess.jobs

EFFECT = tasks.effect.name
BOTH = pytest.mark.parametrize("kind", ["queue", "task"])


def name_of(kind: str, jobs: InProcess) -> str:
    return jobs.queue if kind == "queue" else EFFECT


@BOTH
def test_a_message_that_is_out_starts_nothing_under_a_pause(jobs: InProcess, kind: str) -> None:
    result = tasks.effect.delay("a")
    public.pause(actor="Grace", **{kind: name_of(kind, jobs)})
    jobs.work()
    row = jobs.row(result)
    assert (row.status, row.sends, row.check_at, row.failures, row.crashes) == (Status.WAITING, 0, None, 0, 0)
    assert jobs.effects("a") == 0
    assert jobs.kinds(result) == []


@BOTH
def test_the_sweep_sends_nothing_that_is_paused_and_all_after_the_resume(jobs: InProcess, kind: str) -> None:
    public.pause(actor="Grace", **{kind: name_of(kind, jobs)})
    result = tasks.effect.delay("a")
    jobs.work()
    assert jobs.sweep().published == 0
    assert jobs.sweep().published == 0
    assert jobs.take() == []
    assert public.resume(**{kind: name_of(kind, jobs)})
    assert not public.resume(**{kind: name_of(kind, jobs)})
    assert jobs.sweep().published == 1
    jobs.work()
    assert jobs.row(result).status == Status.SUCCEEDED
    assert jobs.effects("a") == 1


def test_others_run_while_a_task_is_paused(jobs: InProcess) -> None:
    public.pause(task=EFFECT, actor="Grace")
    held, other = tasks.effect.delay("a"), tasks.add.delay(1, 2)
    jobs.work()
    jobs.sweep()
    jobs.work()
    assert jobs.row(other).status == Status.SUCCEEDED
    assert (jobs.row(held).status, jobs.row(held).paused_at is None) == (Status.WAITING, False)


@BOTH
def test_a_pause_between_insert_and_commit_holds(jobs: InProcess, kind: str) -> None:
    with transaction.atomic():
        result = tasks.effect.delay("a")
        public.pause(actor="Grace", **{kind: name_of(kind, jobs)})
    jobs.work()
    assert jobs.effects("a") == 0
    assert jobs.row(result).status == Status.WAITING


@BOTH
def test_a_committed_claim_and_a_non_atomic_task_look_too(jobs: InProcess, kind: str) -> None:
    result = tasks.effect.delay("a")
    [message] = jobs.take()
    public.pause(actor="Grace", **{kind: name_of(kind, jobs)})
    jobs.deliver(message, redelivered=True)
    row = jobs.row(result)
    assert (row.status, row.crashes, row.token) == (Status.WAITING, 0, None)
    assert jobs.effects("a") == 0


def test_what_is_due_later_is_not_put_off(jobs: InProcess) -> None:
    public.pause(task=EFFECT, actor="Grace")
    result = tasks.effect.apply_async(("a",), countdown=600)
    before = jobs.row(result).due_at
    jobs.sweep()
    assert jobs.row(result).due_at == before
    public.resume(task=EFFECT)
    assert jobs.row(result).due_at == before


def test_why_a_job_waits_is_known_through_a_pause(jobs: InProcess) -> None:
    """Undo of an act, and the list of what is retrying, choose by it."""
    row = jobs.run(tasks.effect, "a")
    public.pause(task=EFFECT, actor="Grace")
    public.requeue([row.pk], actor="Grace")
    jobs.sweep()
    assert (jobs.row(row).reason, jobs.row(row).paused_at is None) == (Reason.REQUEUED, False)
    public.resume(task=EFFECT)
    assert (jobs.row(row).reason, jobs.row(row).paused_at) == (Reason.REQUEUED, None)


def test_a_row_that_a_resume_met_locked_is_brought_back_by_the_sweep(jobs: InProcess) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer")
    public.pause(task=EFFECT, actor="Grace")
    result = tasks.effect.delay("a")
    jobs.work()
    done = threading.Event()

    def resume() -> None:
        public.resume(task=EFFECT)
        done.set()
        connection.close()

    with transaction.atomic():
        Job.objects.lock().get(pk=result.id)
        thread = threading.Thread(target=resume)
        thread.start()
        assert done.wait(20), "it waits for no row"
    thread.join(20)
    assert jobs.row(result).paused_at is not None
    assert jobs.sweep().published == 1


def test_a_refusal_leaves_a_row_that_keeps_a_steps_place(jobs: InProcess) -> None:
    row = jobs.run(tasks.effect, "a")
    Job.objects.filter(pk=row.pk).update(status=Status.WAITING, due_at=None, reason=Reason.REPLACED)
    public.pause(task=EFFECT, actor="Grace")
    lifecycle.put_back(row.pk, "task", "default")
    assert (jobs.row(row).due_at, jobs.row(row).paused_at) == (None, None)


def test_what_is_paused_by_both_waits_for_both(jobs: InProcess) -> None:
    public.pause(task=EFFECT, actor="Grace")
    public.pause(queue=jobs.queue, actor="Grace")
    result = tasks.effect.delay("a")
    jobs.work()
    public.resume(queue=jobs.queue)
    jobs.sweep()
    jobs.work()
    assert jobs.effects("a") == 0
    public.resume(task=EFFECT)
    jobs.sweep()
    jobs.work()
    assert jobs.row(result).status == Status.SUCCEEDED


def test_a_requeued_job_waits_for_the_resume(jobs: InProcess) -> None:
    row = jobs.run(tasks.effect, "a")
    public.pause(task=EFFECT, actor="Grace")
    public.requeue([row.pk], actor="Grace")
    jobs.sweep()
    jobs.work()
    assert jobs.effects("a") == 1
    public.resume(task=EFFECT)
    jobs.sweep()
    jobs.work()
    assert jobs.effects("a") == 2


def test_pause_names_one_thing_and_resume_too(jobs: InProcess) -> None:
    for wrong in ({}, {"queue": "a", "task": "b"}):
        with pytest.raises(ValueError, match="Name a queue or a task"):
            public.pause(actor="Grace", **wrong)
        with pytest.raises(ValueError, match="Name a queue or a task"):
            public.resume(**wrong)
    public.pause(queue="mail", actor="Grace", why="the provider is down")
    public.pause(queue="mail", actor="Ada", why="still")
    [pause] = lifecycle.paused("default")
    assert (str(pause), pause.actor, pause.why) == ("mail", "Ada", "still")


def test_a_resume_during_the_refusal_leaves_no_job_an_hour_ahead(jobs: InProcess) -> None:
    """The claim saw the pause; before the row is put off, the resume commits and has brought back what there was."""
    result = tasks.effect.delay("a")
    public.pause(task=EFFECT, actor="Grace")
    public.resume(task=EFFECT)
    lifecycle.put_back(jobs.row(result).pk, "task", "default")
    assert jobs.row(result).paused_at is None
    assert jobs.sweep().published == 1


def test_a_resume_waits_for_a_refusal_and_brings_its_row_back(jobs: InProcess) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer")
    result = tasks.effect.delay("a")
    public.pause(task=EFFECT, actor="Grace")
    resumed = threading.Event()

    def resume() -> None:
        public.resume(task=EFFECT)
        resumed.set()
        connection.close()

    with transaction.atomic():
        job = Job.objects.lock().get(pk=result.id)
        assert pauses.put_off([job], "default") == []
        thread = threading.Thread(target=resume)
        thread.start()
        assert not resumed.wait(0.5), "it waits for the refusal's transaction"
    thread.join(20)
    assert (jobs.row(result).paused_at, Pause.objects.count()) == (None, 0)
    assert jobs.sweep().published == 1


@pytest.mark.promise("I10")
def test_a_sweep_of_many_rows_of_a_paused_task_touches_each_once(jobs: InProcess) -> None:
    public.pause(task=EFFECT, actor="Grace")
    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        tasks.effect.bulk_delay([(str(number),) for number in range(30)])
    jobs.sweep()
    assert Job.objects.filter(paused_at__isnull=False, sends=0).count() == 30
    versions = list(Job.objects.order_by("pk").values_list("due_at", flat=True))
    jobs.sweep()
    assert list(Job.objects.order_by("pk").values_list("due_at", flat=True)) == versions
    public.resume(task=EFFECT)
    assert not Job.objects.filter(paused_at__isnull=False).exists()
