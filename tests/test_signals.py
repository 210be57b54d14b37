"""The signals of a job's way: when each is sent, with what, how often, and what a bad receiver does."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import Signal

from reliable_jobs import ReliableTask, lifecycle, signals
from reliable_jobs import jobs as public
from reliable_jobs.compat.django_signals import receivers_of
from reliable_jobs.dispatch import on_commit
from reliable_jobs.enqueue.template import Template
from reliable_jobs.models import Job
from reliable_jobs.run import kept_connections
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.support.rows import past
from tests.testapp import tasks
from tests.testapp.models import Effect

jobs = inprocess.jobs

NAMES = ("job_enqueued", "job_published", "job_started", "job_settled", "job_rescued", "job_parked")


@shared_task(base=ReliableTask, atomic=False)
def starts_another() -> None:
    tasks.effect.delay("other")


@shared_task(base=ReliableTask)
def starts_in_transaction() -> None:
    tasks.effect.delay("other")


class Heard(list[tuple[str, dict[str, Any]]]):
    """What was sent, with whether a transaction was open then."""

    def names(self) -> list[str]:
        return [name.removeprefix("job_") for name, _ in self]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [said for one, said in self if one == f"job_{name}"]


@pytest.fixture
def heard() -> Iterator[Heard]:
    found = Heard()
    with contextlib.ExitStack() as stack:
        for name in NAMES:
            signal = getattr(signals, name)

            def receive(_name: str = name, **said: Any) -> None:
                assert said.pop("sender") is Job
                said.pop("signal")
                found.append((_name, {**said, "open": connection.in_atomic_block}))

            signal.connect(receive, weak=False)
            stack.callback(signal.disconnect, receive)
        yield found


@contextlib.contextmanager
def receiving(signal: Any, receive: Any) -> Iterator[None]:
    signal.connect(receive)
    try:
        yield
    finally:
        signal.disconnect(receive)
        # A limit that ends a commit hook leaves the hooks behind it: the thread's next commit, another test's, would
        # publish for them.
        on_commit._open.hooks("default").clear()


@shared_task(base=ReliableTask, bundle=4)
def small(fail: bool) -> None:
    if fail:
        raise ValueError("no")


@shared_task(base=ReliableTask)
def hook_raises() -> None:
    def hook() -> None:
        raise ValueError("a hook of the project's")

    transaction.on_commit(hook)


def test_a_job_is_enqueued_published_started_and_settled_once(jobs: InProcess, heard: Heard) -> None:
    job = jobs.run(tasks.effect, "signals")
    assert heard.names() == ["enqueued", "published", "started", "settled"]
    about = {"job_id": job.pk, "task": tasks.effect.name, "queue": jobs.queue, "using": "default"}
    assert all(about.items() <= said.items() for _, said in heard)
    # The run's transaction is open when it starts; everything else has been committed.
    assert [said["open"] for _, said in heard] == [False, False, True, False]
    (started,), (settled,), (published,) = heard.of("started"), heard.of("settled"), heard.of("published")
    assert (published["send"], started["attempt"], settled["attempt"]) == (1, 1, 1)
    assert 0 <= started["wait"] < 60
    assert 0 < settled["seconds"] < 60
    assert [settled[name] for name in ("status", "kind", "detail", "error_class")] == ["succeeded", "", "", ""]


def test_nothing_is_sent_of_what_was_rolled_back(jobs: InProcess, heard: Heard) -> None:
    with pytest.raises(ValueError, match="undo"), transaction.atomic():
        tasks.effect.delay("undone")
        raise ValueError("undo")
    with transaction.atomic():
        tasks.effect.delay("kept")
        assert heard == []
    assert heard.names() == ["enqueued", "published"]


def test_a_retry_settles_nothing_and_a_failure_says_why(jobs: InProcess, heard: Heard) -> None:
    jobs.run(tasks.fails_first, "again", 1)
    assert heard.of("settled") == []
    jobs.finish()
    jobs.run(tasks.fails, "milk")
    assert [said["attempt"] for said in heard.of("started")] == [1, 2, 1]
    good, bad = heard.of("settled")
    assert (good["status"], good["attempt"]) == ("succeeded", 2)
    assert (bad["status"], bad["kind"], bad["error_class"]) == ("failed", "failure", "ValueError")
    assert "no milk" in bad["detail"]
    assert bad["seconds"] > 0


def test_a_sensitive_value_is_in_no_signal(jobs: InProcess, heard: Heard) -> None:
    jobs.run(tasks.login, "ann", "s3cret-value")
    assert heard.names()[-1] == "settled"
    assert "s3cret-value" not in repr(heard)


@pytest.mark.parametrize("broken", [False, True])
def test_a_bundle_is_told_of_job_by_job(
    jobs: InProcess, heard: Heard, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    monkeypatch.setattr(kept_connections, "active", True)
    with transaction.atomic():
        ids = {uuid.UUID(one) for one in small.bulk_delay([(False,), (broken,), (False,)])}
    messages = jobs.take()
    assert len(messages) == 1
    jobs.deliver(messages[0])
    jobs.finish()
    for name in ("enqueued", "settled"):
        assert [len(heard.of(name)), {said["job_id"] for said in heard.of(name)}] == [3, ids]
    assert {said["job_id"] for said in heard.of("published")} == ids
    assert sorted(said["status"] for said in heard.of("settled")) == ["failed"] * broken + ["succeeded"] * (3 - broken)
    # What failed in the bundle has been undone and begun again.
    assert len(heard.of("started")) > 3 if broken else len(heard.of("started")) == 3


def test_calls_of_a_bulk_that_celery_renders_are_told_of_once(
    jobs: InProcess, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Template.fill_each

    def fill_most(template: Template, args: Any, kwargs: Any) -> Any:
        return None if "odd" in args else fill(template, args, kwargs)

    monkeypatch.setattr(Template, "fill_each", fill_most)
    ids = tasks.effect.bulk_delay([("a",), ("odd",), ("b",)])
    assert sorted(str(said["job_id"]) for said in heard.of("enqueued")) == sorted(ids)


def test_a_known_key_enqueues_nothing_new(jobs: InProcess, heard: Heard) -> None:
    for _ in range(2):
        tasks.effect.apply_async(("key",), key="same")
    assert len(heard.of("enqueued")) == 1


def test_a_cancel_and_an_expiry_settle_without_a_run(jobs: InProcess, heard: Heard) -> None:
    job = tasks.effect.apply_async(("later",), countdown=600)
    public.cancel([job.id], actor="ann")
    tasks.effect.apply_async(("late",), expires=60)
    Job.objects.filter(status="waiting").update(expires_at=past())
    jobs.finish()
    cancelled, expired = heard.of("settled")
    assert (cancelled["status"], cancelled["kind"], cancelled["seconds"]) == ("cancelled", "cancel", None)
    assert (expired["status"], expired["kind"]) == ("expired", "expiry")


def test_a_job_is_rescued_and_at_last_given_up_for_its_crashes(jobs: InProcess, heard: Heard) -> None:
    job = jobs.row(tasks.effect.delay("dies"))
    jobs.take()
    dead = {"status": "running", "lease_at": past(), "sends": 1, "worker": "w1 pid 7 #1"}
    Job.objects.filter(pk=job.pk).update(token=uuid.uuid4(), crashes=3, **dead)
    jobs.sweep()
    (rescued,) = heard.of("rescued")
    assert (rescued["job_id"], rescued["task"], rescued["open"]) == (job.pk, tasks.effect.name, False)
    assert "w1 pid 7" in rescued["detail"]
    assert not rescued["seen"]
    jobs.finish()
    (settled,) = heard.of("settled")
    assert (settled["status"], settled["kind"], settled["error_class"].split(".")[-1]) == (
        *("failed", "crash"),
        "CrashLimitExceeded",
    )


def test_a_job_is_parked_twice_and_settled_when_given_up(jobs: InProcess, heard: Heard) -> None:
    job = jobs.row(tasks.effect.delay("no code"))
    for _ in range(2):
        lifecycle.hand_back(job.pk, "default", worker="w1", why="unknown task", delay=0.0)
        Job.objects.update(deadline_at=past())
    assert [(said["final"], said["detail"]) for said in heard.of("parked")] == [
        (False, "unknown task"),
        (True, "gave up: unknown task"),
    ]
    (settled,) = heard.of("settled")
    assert (settled["status"], settled["kind"]) == ("failed", "parked")


class Counted(list[tuple[str, Any]]):
    """Signals that were counted, with the job of each."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            signals.count(getattr(signals, name), functools.partial(self.note, name))

    def note(self, name: str, said: Mapping[str, Any]) -> None:
        self.append((name, said["job_id"]))


@pytest.fixture
def counted() -> Iterator[Counted]:
    yield Counted()
    for name in NAMES:
        signals.count(getattr(signals, name), None)


def test_counters_are_told_as_receivers_are(jobs: InProcess, heard: Heard, counted: Counted) -> None:
    with pytest.raises(ValueError, match="undo"), transaction.atomic():
        tasks.effect.delay("undone")
        raise ValueError("undo")
    jobs.run(tasks.effect, "counted")
    jobs.run(small, False)
    assert counted == [(name, said["job_id"]) for name, said in heard]
    assert heard.names() == ["enqueued", "published", "started", "settled"] * 2


def test_counters_alone_cost_no_dispatch_and_no_guard(
    jobs: InProcess, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(Signal, "send_robust", lambda signal, *args, **said: called.append(signal))
        patch.setattr(signals, "_send_guarded", lambda signal, *args: called.append(signal))
        job = jobs.run(tasks.effect, "counted")
    assert job.status == "succeeded"
    assert [name for name, _ in counted] == list(NAMES[:4])
    assert not called


def test_receivers_beside_a_counter_cannot_use_the_database(
    jobs: InProcess, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    def receive(**said: Any) -> None:
        Effect.objects.create(name="receiver")

    with receiving(signals.job_started, receive):
        assert jobs.run(tasks.effect, "function").status == "succeeded"
    assert (jobs.effects("function"), jobs.effects("receiver"), len(counted)) == (1, 0, 4)
    assert "must not use the job's database" in caplog.text


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_counter_that_raises_fails_no_job(
    jobs: InProcess, heard: Heard, counted: Counted, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def count(said: Any) -> None:
        raise ValueError("a counter's own error")

    signals.count(getattr(signals, name), count)
    assert jobs.run(tasks.effect, "counter").status == "succeeded"
    assert [record.levelname for record in caplog.records if record.name == signals.__name__] == ["ERROR"]
    assert (len(heard), len(counted)) == (4, 3)


def test_a_soft_time_limit_that_meets_a_counter_is_the_functions(
    jobs: InProcess, heard: Heard, counted: Counted
) -> None:
    def count(said: Any) -> None:
        raise SoftTimeLimitExceeded

    signals.count(signals.job_started, count)
    job = jobs.run(tasks.effect, "in time")
    assert (job.status, job.error_class.split(".")[-1]) == ("failed", "SoftTimeLimitExceeded")
    assert jobs.effects("in time") == 0
    assert len(heard.of("started")) == 1


@pytest.mark.servers
def test_a_settlement_whose_commit_lost_its_answer_is_told_of(
    jobs: InProcess, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = connections["default"]._commit
    lost: list[bool] = []

    def lossy() -> None:
        commit()
        if heard.of("started") and not lost:
            lost.append(True)
            raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(connections["default"], "_commit", lossy)
    assert jobs.run(tasks.effect, "answer").status == "succeeded"
    assert lost
    assert [said["status"] for said in heard.of("settled")] == ["succeeded"]


def test_a_hook_of_the_project_that_raises_hides_no_settlement(jobs: InProcess, heard: Heard) -> None:
    assert jobs.run(hook_raises).status == "succeeded"
    assert [said["status"] for said in heard.of("settled")] == ["succeeded"]


@pytest.mark.parametrize("name", ["job_enqueued", "job_published", "job_started", "job_settled"])
def test_a_receiver_that_raises_fails_no_job(jobs: InProcess, caplog: pytest.LogCaptureFixture, name: str) -> None:
    def receive(**said: Any) -> None:
        raise ValueError("a receiver's own error")

    with receiving(getattr(signals, name), receive), caplog.at_level(logging.ERROR, "django.dispatch"):
        assert jobs.run(tasks.effect, "receiver").status == "succeeded"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert jobs.effects("receiver") == 1


def test_a_receiver_of_started_cannot_break_the_runs_transaction(
    jobs: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    def receive(**said: Any) -> None:
        Effect.objects.create(name="receiver")

    with receiving(signals.job_started, receive):
        job = jobs.run(tasks.effect, "function")
    assert (job.status, job.failures, job.interruptions) == ("succeeded", 0, 0)
    assert (jobs.effects("function"), jobs.effects("receiver")) == (1, 0)
    assert "must not use the job's database" in caplog.text


@pytest.mark.parametrize("bundled", [False, True])
@pytest.mark.parametrize(
    "close", [lambda: connection.close(), lambda: connection.connect(), lambda: connections.close_all()]
)
def test_a_receiver_of_started_that_closes_the_connection_fails_no_job(
    jobs: InProcess, caplog: pytest.LogCaptureFixture, close: Any, bundled: bool
) -> None:
    def receive(**said: Any) -> None:
        close()

    task, args = (small, (False,)) if bundled else (tasks.effect, ("function",))
    with receiving(signals.job_started, receive):
        job = jobs.run(task, *args)
    assert (job.status, job.failures, job.interruptions) == ("succeeded", 0, 0)
    assert bundled or jobs.effects("function") == 1
    assert "must not use the job's database" in caplog.text
    assert "close" not in vars(connection), "it can be closed again"


def test_a_soft_time_limit_that_meets_a_receiver_is_the_functions(jobs: InProcess) -> None:
    def receive(**said: Any) -> None:
        raise SoftTimeLimitExceeded

    with receiving(signals.job_started, receive):
        job = jobs.run(tasks.effect, "in time")
    assert (job.status, job.error_class.split(".")[-1]) == ("failed", "SoftTimeLimitExceeded")
    assert jobs.effects("in time") == 0


@pytest.mark.parametrize("signal", [signals.job_enqueued, signals.job_published])
def test_a_soft_time_limit_that_meets_a_receiver_ends_a_plain_function(jobs: InProcess, signal: Any) -> None:
    """It comes once: swallowed there, only the hard limit would end the function that has called the other task."""

    def receive(task: str, **said: Any) -> None:
        if task == tasks.effect.name:
            raise SoftTimeLimitExceeded

    with receiving(signal, receive):
        job = jobs.run(starts_another)
    assert (job.status, job.error_class.split(".")[-1]) == ("failed", "SoftTimeLimitExceeded")
    assert Job.objects.filter(task=tasks.effect.name).count() == 1


def test_an_async_receiver_that_cant_be_called_breaks_no_commit(
    jobs: InProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an event loop runs in this thread, Django raises past its own guard."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")

    async def receive(**said: Any) -> None:
        raise AssertionError("not called")

    usual = connections["default"]

    async def view() -> None:
        try:
            with transaction.atomic():
                tasks.effect.delay("committed")
        finally:
            own = connections["default"]
            if own is not usual:  # this task's; SQLite's close() would keep it
                BaseDatabaseWrapper.close(own)

    with receiving(signals.job_enqueued, receive), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the coroutine that nobody awaits
        asyncio.run(view())
    assert Job.objects.count() == 1
    assert "event loop" in caplog.text


@pytest.mark.parametrize("name", NAMES[:2] + NAMES[3:4])
def test_a_soft_limit_in_a_receiver_after_the_commit_ends_no_job(jobs: InProcess, name: str) -> None:
    met = []

    def receive(task: str, **said: Any) -> None:
        if task == tasks.effect.name or name == "job_settled":
            met.append(task)
            raise SoftTimeLimitExceeded

    with receiving(getattr(signals, name), receive):
        job = jobs.run(starts_in_transaction)
    assert job.status == "succeeded"
    assert jobs.last[0].signals[-2:] == ["task_success", "task_postrun"]
    assert Job.objects.filter(task=tasks.effect.name).count() == len(met) == 1


def test_without_a_receiver_no_statement_and_no_hook_is_added(jobs: InProcess) -> None:
    assert not any(receivers_of(getattr(signals, name)) for name in NAMES[:4])  # the usual way's
    with transaction.atomic():
        before = len(connection.run_on_commit)
        tasks.effect.delay("alone")
        assert len(connection.run_on_commit) == before + 1  # the dispatch


def test_where_the_caller_commits_by_hand_nothing_is_sent(jobs: InProcess, heard: Heard) -> None:
    connection.set_autocommit(False)
    try:
        tasks.effect.delay("by hand")
        connection.commit()
    finally:
        connection.set_autocommit(True)
    assert heard == []
    assert Job.objects.count() == 1


FORKS = """
import os
from reliable_jobs.signals import job_settled

with job_settled.lock:
    child = os.fork()
    if child == 0:
        os._exit(0 if job_settled.lock.acquire(timeout=5) else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_forked_while_a_signals_lock_is_held_can_send() -> None:
    """The sweeper's thread beside a worker may have it at the moment when the pool forks a child."""
    subprocess.run([sys.executable, "-c", FORKS], check=True)
