"""B1: an error between a message's arrival and its answer that no run reports. It becomes the job's history, ends the
job after a bounded number of tries, fires the failure hooks once, and is not called a crash."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from celery import signals
from celery.exceptions import Ignore, Retry
from django.test import override_settings
from django.utils import timezone

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.run import arrival, delivery
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

pytestmark = [pytest.mark.promise("I7"), pytest.mark.promise("I6")]
jobs = inprocess.jobs
HEARD: list[str] = []


class Listening(ReliableTask):
    """Notes how often its failure hooks fire."""

    def on_failure(self, exc: Any, *args: Any, **kwargs: Any) -> None:
        HEARD.append(type(exc).__name__)


class BreaksBeforeStart(Listening):
    error: Any = ValueError("no start")

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        raise self.error


class BreaksInCall(Listening):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no call")


class NeverCalls(Listening):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return "done nothing"


class BreaksAfterCall(Listening):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        super().__call__(*args, **kwargs)
        raise ValueError("too late")


class SwallowsAll(Listening):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValueError:
            return "nothing happened"


class Mixin:
    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        raise ValueError("no start")


class WithMixin(Mixin, Listening):
    pass


def _effect(name: str, **kwargs: Any) -> str:
    Effect.objects.create(name=name)
    return name


def _fails(name: str) -> None:
    raise ValueError("the function's own")


def make(base: type, function: Any = _effect, **options: Any) -> Any:
    return app.task(name=f"unreported.{uuid.uuid4().hex[:8]}", base=base, shared=False, **options)(function)


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[str]]:
    HEARD.clear()
    yield HEARD
    for name in [name for name in app.tasks if name.startswith("unreported.")]:
        del app.tasks[name]


def history(job: Job) -> list[tuple[str, bool]]:
    """Kinds of the events, and whether each has a traceback."""
    return [(event.kind, "Traceback" in event.traceback) for event in JobEvent.objects.filter(job=job).order_by("pk")]


@pytest.mark.parametrize("base", [BreaksBeforeStart, BreaksInCall, WithMixin])
@pytest.mark.parametrize("redelivered", [False, True])
def test_b1_what_celery_fails_for_fails_the_job_at_once(
    jobs: InProcess, base: type, redelivered: bool, heard: list[str]
) -> None:
    result = make(base).delay("x")
    message = jobs.take()[0]
    told = jobs.deliver(message, redelivered=redelivered)
    job = jobs.row(result)
    assert (job.status, job.reason, job.crashes, job.failures) == ("failed", "error", 0, 1)
    assert job.error.startswith("ValueError: no ")
    assert history(job) == [("failure", True)]
    assert (told.answer, heard, told.signals.count("task_failure")) == ("acked", ["ValueError"], 1)
    again = jobs.deliver(message, redelivered=True)
    assert (again.answer, heard, again.signals.count("task_failure")) == ("acked", ["ValueError"], 0), "a copy is told"
    assert result.state == "FAILURE"


def test_b1_a_hook_set_on_the_task_itself_fails_the_job_too(jobs: InProcess, heard: list[str]) -> None:
    def before_start(task_id: str, args: Any, kwargs: Any) -> None:
        raise ValueError("no start")

    task = make(BreaksBeforeStart)
    task.before_start = before_start
    job = jobs.run(task, "x")
    assert (job.status, history(job), heard) == ("failed", [("failure", True)], ["ValueError"])


def test_b1_the_error_of_a_hook_hides_sensitive_arguments(jobs: InProcess) -> None:
    class Tells(Listening):
        sensitive = ("name",)

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            raise ValueError(f"not {args[0]}")

    job = jobs.run(make(Tells), "hunter22")
    event = JobEvent.objects.get(job=job)
    assert job.status == "failed"
    assert "hunter22" not in job.error + job.traceback + event.detail + event.traceback
    assert "[hidden]" in job.error


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (Ignore(), ("succeeded", "ignored")),
        (Retry("later", when=30), ("waiting", "asked")),
        (MemoryError(), ("failed", "error")),
        (SystemExit(3), ("failed", "error")),
    ],
)
def test_b1_a_hook_may_end_its_job_as_a_function_may(jobs: InProcess, error: Any, ends: tuple[str, str]) -> None:
    class Ends(BreaksBeforeStart):
        pass

    Ends.error = error
    job = jobs.run(make(Ends), "x")
    assert (job.status, job.reason) == ends


@pytest.mark.promise("I3")
def test_b1_a_call_that_does_not_reach_ours_fails_and_says_why(jobs: InProcess, heard: list[str]) -> None:
    job = jobs.run(make(NeverCalls), "x")
    assert (job.status, heard) == ("failed", ["CallNotReached"])
    assert "super().__call__" in job.error


@pytest.mark.promise("I3")
def test_b1_what_the_row_says_stands_whatever_call_makes_of_it(jobs: InProcess, heard: list[str]) -> None:
    job = jobs.run(make(BreaksAfterCall), "late")
    assert (job.status, jobs.effects("late"), heard) == ("succeeded", 1, [])
    assert history(job) == [("failure", True)], "the error is in the history"
    assert "task_success" in jobs.last[0].signals
    job = jobs.run(make(SwallowsAll, _fails), "x")
    assert (job.status, heard) == ("failed", ["ValueError"])
    assert "task_success" not in jobs.last[0].signals


def test_b1_an_argument_called_self_is_an_argument(jobs: InProcess) -> None:
    task = make(ReliableTask)
    jobs.deliver(jobs.foreign(task.name, ["x"], {"self": 1}))
    assert Job.objects.get().status == "succeeded"


def test_b1_an_argument_that_a_custom_call_can_not_take_fails_the_job(jobs: InProcess, heard: list[str]) -> None:
    class Custom(Listening):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    task = make(Custom)
    jobs.deliver(jobs.foreign(task.name, ["x"], {"self": 1}))
    job = Job.objects.get()
    assert (job.status, heard, history(job)) == ("failed", ["TypeError"], [("failure", True)])


@pytest.mark.promise("I2")
def test_b1_a_set_in_yaml_from_a_producer_that_was_not_adopted_runs(jobs: InProcess) -> None:
    task = make(ReliableTask)
    body = yaml.dump([["x"], {"value": {1, 2}}, {}]).encode()
    headers = {"lang": "py", "task": task.name, "id": str(uuid.uuid4())}
    accept = app.conf.accept_content
    app.conf.accept_content = ["json", "yaml"]
    try:
        message = jobs.through_broker(body, "application/x-yaml", "utf-8", headers, {})
        message.accept = {"application/x-yaml"}
        jobs.deliver(message)
    finally:
        app.conf.accept_content = accept
    job = Job.objects.get()
    assert (job.status, job.content_type, bytes(job.payload)) == ("succeeded", "application/x-yaml", body)


def test_b1_no_hook_runs_for_a_redelivered_copy_of_a_settled_job(jobs: InProcess, heard: list[str]) -> None:
    ran: list[str] = []

    class Notes(Listening):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            ran.append(task_id)

    task = make(Notes)
    result = task.delay("once")
    jobs.work()
    for send in (1, 2):
        assert jobs.deliver(jobs.message(result, redelivered=True, send=send)).answer == "acked"
    assert (ran, jobs.effects("once"), jobs.row(result).crashes) == ([result.id], 1, 0)


def test_b1_a_hook_that_takes_longer_than_a_lease_keeps_its_job(
    jobs: InProcess, settings: Any, heard: list[str]
) -> None:
    settings.RELIABLE_JOBS = {"LEASE": 0.3}

    class Slow(Listening):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            until = time.monotonic() + 0.7
            while time.monotonic() < until:
                time.sleep(0.05)

    task = make(Slow)
    result = task.delay("slow")
    jobs.deliver(jobs.message(result, send=2))
    job = jobs.row(result)
    assert (job.status, job.crashes, jobs.effects("slow"), jobs.kinds(result)) == ("succeeded", 0, 1, [])


def broken(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    def breaks(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(owner, name, breaks)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(delivery, "waiting_out_outages"), (arrival, "write_row"), (delivery.execution, "run_with_committed_claim")],
)
@override_settings(RELIABLE_JOBS={"MAX_INTERRUPTIONS": 2})
def test_b1_an_error_of_the_worker_is_tried_again_and_ends_the_job(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, heard: list[str], owner: Any, name: str
) -> None:
    broken(monkeypatch, owner, name)
    task = make(Listening)
    if owner is arrival:
        message = jobs.foreign(task.name, ["x"])
        told = jobs.deliver(message)
        assert told.answer == "acked"
        job = Job.objects.get()
        assert (job.status, job.reason) == ("failed", "parked")
        assert "a bug" in job.error
        return
    result = task.delay("x")
    for tries in (1, 2, 3):
        Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
        told = jobs.deliver(jobs.message(result, send=2))
        job = jobs.row(result)
        assert (job.interruptions, job.status) == ((tries, "waiting") if tries < 3 else (2, "failed"))
        assert "a bug" in job.error
        assert told.answer == "acked"
    assert (job.crashes, job.failures, job.reason) == (0, 0, "interrupted")
    assert history(job) == [("interruption", True)] * 3
    assert heard == ["WorkerFailed"]


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")
@override_settings(RELIABLE_JOBS={"MAX_INTERRUPTIONS": 1})
def test_b1_a_result_backend_that_is_away_keeps_no_job_from_running(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    task = make(Listening, track_started=True)
    broken(monkeypatch, task.backend.wrapped, "store_result")
    result = task.delay("x")
    assert jobs.deliver(jobs.message(result)).answer == "acked"
    job = jobs.row(result)
    assert (job.status, job.reason, heard) == ("succeeded", "", [])
    assert jobs.effects("x") == 1


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")
@override_settings(RELIABLE_JOBS={"MAX_INTERRUPTIONS": 1})
def test_b1_an_error_of_the_tracer_before_the_run_ends_the_job_in_time(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    task = make(Listening, track_started=True)
    for name in ("store_result", "mark_as_failure"):
        broken(monkeypatch, task.backend, name)
    internal: list[Any] = []
    signals.task_internal_error.connect(lambda **kwargs: internal.append(kwargs["exception"]), weak=False)
    result = task.delay("x")
    for _ in range(2):
        Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
        assert jobs.deliver(jobs.message(result)).answer == "acked"
    job = jobs.row(result)
    assert (job.status, job.reason, heard) == ("failed", "interrupted", ["WorkerFailed"])
    assert jobs.effects("x") == 0


@pytest.mark.promise("I3")
@override_settings(RELIABLE_JOBS={"MAX_INTERRUPTIONS": 1})
def test_what_follows_a_job_that_the_worker_could_not_run_fails_with_it(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    """A neighbour: its errbacks were never started, and a chain's later steps stayed unwritten for ever."""
    task = make(Listening)
    last = (task.si("first") | task.si("second")).apply_async(link_error=tasks.effect.si("errback"))
    with monkeypatch.context() as patch:
        broken(patch, delivery.execution, "run_with_committed_claim")
        for _ in range(2):
            Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
            jobs.deliver(jobs.message(last.parent, send=2))
    assert jobs.row(last.parent).reason == "interrupted"
    assert jobs.row(last.parent).status == "failed"
    assert jobs.row(last).status == "failed"
    jobs.finish()
    assert jobs.effects("errback") > 0
