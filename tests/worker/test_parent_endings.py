"""What a worker's parent process makes of messages, deaths and revocations."""

from __future__ import annotations

import datetime
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.events.state import State
from celery.exceptions import Reject
from celery.utils.nodenames import gethostname
from celery.worker import state as worker_state
from celery.worker.request import create_request_cls
from django.db import OperationalError
from kombu.utils.imports import symbol_by_name

from reliable_jobs import ReliableTask, lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import delays
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.run import arrival
from reliable_jobs.run.state import NotStarted
from reliable_jobs.worker import parking, revocation
from tests.celery_app import app
from tests.support import inprocess
from tests.support.errors import Worker, inline_aside
from tests.support.inprocess import HOSTNAME, InProcess
from tests.testapp import tasks

jobs = inprocess.jobs


@pytest.fixture
def parent(jobs: InProcess) -> Iterator[Worker]:
    with inline_aside():
        yield Worker(jobs)


@pytest.fixture(autouse=True)
def _nothing_revoked() -> Iterator[None]:
    yield
    worker_state.revoked.clear()
    revocation._seen.clear()


class Eventer:
    """Keeps the task events that a worker sends, as Flower's state sees them."""

    enabled = True

    def __init__(self) -> None:
        self.state = State()
        self.kinds: list[str] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.kinds.append(kind)
        event = {"type": kind, "hostname": HOSTNAME, "timestamp": time.time(), "local_received": time.time(), **fields}
        self.state.event({"clock": len(self.kinds), "pid": 1, **event})


class Asking:
    """A request of a message, as the consumer makes it."""

    def __init__(self, jobs: InProcess, message: Any, eventer: Any = None) -> None:
        self.answers: list[str] = []
        task = app.tasks[message.headers["task"]]
        kind = create_request_cls(symbol_by_name(task.Request), task, jobs._pool, HOSTNAME, eventer, app=app)
        self.request = kind(
            message,
            on_ack=lambda *args: self.answers.append("acked"),
            on_reject=lambda logger, errors, requeue: self.answers.append("requeued" if requeue else "rejected"),
            eventer=eventer,
            app=app,
            hostname=HOSTNAME,
            task=task,
        )


def info(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()


# --- B4, B11: time ----------------------------------------------------------------------------------------------------


@pytest.mark.promise("I1")
@pytest.mark.parametrize("known", [True, False], ids=["waiting", "without a row"])
def test_a_message_of_ours_without_a_row_makes_no_job(
    jobs: InProcess, parent: Worker, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    result = tasks.effect.delay("rolled back, its message kept alive")
    (message,) = jobs.take()
    message.headers["task"] = "nobody.knows"
    if not known:
        Job.objects.all().delete()
    assert parent.deliver(message) == "rejected"
    assert [(str(job.pk), job.status) for job in Job.objects.all()] == ([(result.id, "waiting")] if known else [])
    assert JobEvent.objects.filter(job_id=result.id).count() == known
    assert ("message dropped" in caplog.text) is not known


@pytest.mark.promise("I7")
def test_b4_a_message_whose_parking_takes_too_long_is_held(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()
    ended = threading.Event()
    park = parking.park_message

    def slow(*args: Any) -> None:
        go_on.wait(30)
        park(*args)
        ended.set()

    monkeypatch.setattr(parking, "park_message", slow)
    monkeypatch.setattr(parking, "PATIENCE", 0.1)
    message = jobs.foreign("nobody.knows", id=str(uuid.uuid4()))
    worker = Worker(jobs)
    try:
        assert worker.deliver(message) == "", "neither acked nor rejected"
    finally:
        go_on.set()
    assert ended.wait(30)
    assert "held unacknowledged" in caplog.text
    monkeypatch.setattr(parking, "PATIENCE", 30)
    assert worker.deliver(message) == "rejected", "when it comes again it is there"
    assert Job.objects.get().status == "failed"


@pytest.mark.promise("I5")
def test_b11_a_message_is_held_by_the_clock_however_long_each_try_takes(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(arrival.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(arrival.time, "sleep", lambda pause: None)

    def attempt() -> None:
        now[0] += 127.0
        raise NotStarted("no route to host")

    with pytest.raises(Exception, match="no route to host"):
        arrival.waiting_out_outages("default", "A job", attempt)
    assert now[0] <= settings.HOLD + 127.0


@pytest.mark.promise("I6")
def test_a_lock_that_stays_is_waited_for_with_pauses_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was tried some forty times a second, for HOLD seconds, without a line in the log."""
    now, tries = [0.0], []
    monkeypatch.setattr(arrival.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(arrival.time, "sleep", lambda pause: now.__setitem__(0, now[0] + pause))
    monkeypatch.setattr(arrival.db_errors, "is_conflict", lambda *args: True)

    def attempt() -> None:
        tries.append(now[0])
        raise NotStarted("database is locked") from OperationalError("database is locked")

    with pytest.raises(Reject):
        arrival.waiting_out_outages("default", "A job", attempt)
    assert settings.HOLD <= now[0] <= settings.HOLD + 1.0
    assert len([moment for moment in tries if moment > delays.CONFLICTS_PASS]) <= settings.HOLD + 3
    assert "Holding the message" in caplog.text


# --- B14: what is known of a death ------------------------------------------------------------------------------------


@pytest.mark.promise("I6")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 5."), "signal 9 (SIGKILL)"),
        (SystemExit(-241), "signal 15 (SIGTERM)"),
        (SystemExit(70), "exit code 70"),
        (TimeLimitExceeded(6), "hard time limit of 6 s"),
    ],
)
def test_b14_every_event_of_a_death_says_what_is_known(
    jobs: InProcess, parent: Worker, error: BaseException, said: str
) -> None:
    result = tasks.effect.delay("x")
    message = jobs.take()[0]
    assert not isinstance(
        lifecycle.claim_committed(uuid.UUID(result.id), 0, "default", worker="w", lease=10.0), lifecycle.Refusal
    )
    asking = Asking(jobs, message)
    asking.request.on_failure(info(error))
    if isinstance(error, TimeLimitExceeded):
        asking.request.on_timeout(False, 6)
    assert asking.answers == ["requeued"]
    Job.objects.update(lease_at=Now() - datetime.timedelta(seconds=0.001))
    assert lifecycle.rescue("default", 10) == 1
    death, rescue = JobEvent.objects.order_by("pk")
    assert said in death.detail
    assert said in rescue.detail
    job = jobs.row(result)
    assert job.reason == ("time limit" if isinstance(error, TimeLimitExceeded) else "crash")


def test_b14_a_death_of_an_earlier_run_is_not_told_of_the_next(jobs: InProcess) -> None:
    result = tasks.effect.delay("x")
    lifecycle.record(jobs.row(result), "default", "time limit", "w", "hard time limit of 6 s")
    JobEvent.objects.update(at=Now() - datetime.timedelta(seconds=60))
    lifecycle.claim_committed(uuid.UUID(result.id), 0, "default", worker="w", lease=-0.001)
    assert lifecycle.rescue("default", 10) == 1
    assert "without a word" in JobEvent.objects.get(kind="rescue").detail


# --- A5: Celery's settings for lost workers ---------------------------------------------------------------------------


@pytest.mark.promise("I2")
@pytest.mark.parametrize("name", ["acks_on_failure", "acks_on_timeout", "retry_on_worker_lost"])
def test_a5_a_killed_childs_message_goes_back_whatever_celery_is_told(
    jobs: InProcess, parent: Worker, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tasks.effect, name, name == "retry_on_worker_lost", raising=False)
    result = tasks.effect.delay("x")
    asking = Asking(jobs, jobs.take()[0])
    asking.request.on_failure(info(WorkerLostError("signal 9 (SIGKILL)")))
    assert asking.answers == ["requeued"]
    assert jobs.take() == [], "nothing is published anew"
    asking = Asking(jobs, jobs.message(result))
    asking.request.on_failure(info(TimeLimitExceeded(5)))
    asking.request.on_timeout(False, 5)
    assert asking.answers == ["requeued"]


def test_a5_the_setting_for_all_tasks_does_not_reach_ours() -> None:
    assert ReliableTask.retry_on_worker_lost is False
    assert app.tasks["reliable_jobs.bundle"].retry_on_worker_lost is False


# --- C2: revoked after a requeue --------------------------------------------------------------------------------------


def requeued(jobs: InProcess, **row: Any) -> Any:
    result = tasks.effect.apply_async(("x",), countdown=3600)
    Job.objects.update(status="failed", finished_at=Now())
    lifecycle.requeue([result.id], "default", actor="ann")
    Job.objects.update(**row)
    return result


@pytest.mark.promise("I7")
def test_c2_a_revocation_after_a_requeue_cancels_one_before_does_not(jobs: InProcess, parent: Worker) -> None:
    result = requeued(jobs)
    worker_state.revoked.add(result.id, now=time.monotonic() - 60)
    revocation.cancel_newly_revoked()
    assert jobs.row(result).status == "waiting", "the requeue is newer"
    assert parent.deliver(jobs.message(result)) == "acked"
    assert jobs.row(result).status == "succeeded"
    JobEvent.objects.all().delete()
    result = requeued(jobs)
    worker_state.revoked.add(result.id)
    revocation.cancel_newly_revoked()
    assert jobs.row(result).status == "cancelled"
    lifecycle.requeue([result.id], "default", actor="ann")
    worker_state.revoked.add(result.id)
    revocation.cancel_newly_revoked()
    assert jobs.row(result).status == "cancelled", "revoked once more"


@pytest.mark.promise("I7")
def test_c2_a_message_of_a_job_revoked_after_its_requeue_is_not_run(jobs: InProcess, parent: Worker) -> None:
    result = requeued(jobs)
    worker_state.revoked.add(result.id)
    assert parent.deliver(jobs.message(result)) == "acked"
    assert (jobs.row(result).status, jobs.effects("x")) == ("cancelled", 0)


def test_c2_what_has_been_seen_is_bounded(jobs: InProcess, parent: Worker) -> None:
    for number in range(100):
        worker_state.revoked.add(f"job {number}")
    revocation.cancel_newly_revoked()
    assert len(revocation._seen) == 100
    worker_state.revoked.clear()
    revocation.cancel_newly_revoked()
    assert not revocation._seen


@pytest.mark.promise("I7")
def test_c2_without_its_result_backend_a_revocation_reaches_the_row(
    jobs: InProcess, parent: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tasks.effect.delay("x")

    def breaks(*args: Any, **kwargs: Any) -> None:
        raise OSError("the backend is away")

    monkeypatch.setattr(tasks.effect.backend, "mark_as_revoked", breaks)
    worker_state.revoked.add(result.id)
    assert parent.deliver(jobs.take()[0]) == "acked"
    assert jobs.row(result).status == "cancelled"


# --- C15: each delivery is closed by an event -------------------------------------------------------------------------


def settled(jobs: InProcess) -> Any:
    result = tasks.effect.delay("x")
    jobs.work()
    return jobs.message(result, redelivered=True)


def failed(jobs: InProcess) -> Any:
    result = tasks.fails.delay("x")
    jobs.work()
    return jobs.message(result, redelivered=True)


def not_due(jobs: InProcess) -> Any:
    return jobs.message(tasks.effect.apply_async(("x",), countdown=3600))


def stale(jobs: InProcess) -> Any:
    return jobs.message(tasks.effect.delay("x"), content_version=7)


def missing(jobs: InProcess) -> Any:
    message = jobs.message(tasks.effect.delay("x"))
    Job.objects.all().delete()
    return message


def snoozed(jobs: InProcess) -> Any:
    return jobs.message(tasks.snoozes.delay("x", 9))


def running(jobs: InProcess) -> Any:
    """A copy of a message whose job runs on another worker."""
    result = tasks.effect.delay("x")
    lifecycle.claim_committed(uuid.UUID(result.id), 0, "default", worker="elsewhere pid 1", lease=60.0)
    return jobs.message(result, send=2)


def suspect(jobs: InProcess) -> Any:
    """Another suspect runs on this worker: it steps back."""
    other, result = tasks.effect.delay("other"), tasks.effect.delay("x")
    Job.objects.update(crashes=1)
    lifecycle.claim_committed(uuid.UUID(other.id), 0, "default", worker=f"{gethostname()} pid 1 #1", lease=60.0)
    return jobs.message(result, send=2)


def monitored(jobs: InProcess, message: Any) -> tuple[Eventer, str]:
    """Deliver a message; return its task events, and the state that monitors show then."""
    task = app.tasks[message.headers["task"]]
    eventer = Eventer()
    asking = Asking(jobs, message, eventer)
    sends, task.send_events = task.send_events, True
    try:
        asking.request.send_event("task-received", name=task.name)
        asking.request.execute_using_pool(jobs._pool)
    finally:
        task.send_events = sends
    assert asking.answers == ["acked"]
    assert eventer.kinds[:2] == ["task-received", "task-started"]
    return eventer, eventer.state.tasks[asking.request.id].state


@pytest.mark.parametrize("what", [settled, failed, not_due, stale, missing, snoozed, suspect])
def test_c15_no_delivery_stays_started_for_monitors(jobs: InProcess, what: Any) -> None:
    eventer, state = monitored(jobs, what(jobs))
    assert state not in ("RECEIVED", "STARTED"), eventer.kinds
    assert state == {"settled": "SUCCESS", "failed": "FAILURE", "missing": "REVOKED"}.get(what.__name__, "RETRY")


def test_c15_a_copy_of_a_running_job_is_closed_and_the_run_stays_started(jobs: InProcess) -> None:
    """Monitors know both by one id: what ends the run is to close it."""
    eventer, state = monitored(jobs, running(jobs))
    assert (eventer.kinds[2:], state) == (["task-rejected"], "STARTED")
