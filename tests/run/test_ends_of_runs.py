"""Runs with an unusual end: a session that is gone, a connection that the task closed, exceptions of other kinds."""

from __future__ import annotations

import contextlib
import datetime
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import WorkerShutdown
from django.core.signals import request_finished
from django.db import Error as DatabaseError
from django.db import OperationalError, close_old_connections, connection, connections, transaction
from django.db.models import F
from django.test import override_settings

from reliable_jobs import ReliableTask, lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.lifecycle import delays
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.run import outcomes, recovery
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.support.threads import elsewhere
from tests.testapp.models import Effect

jobs = inprocess.jobs
ACT: dict[str, Callable[[], Any]] = {}
RUNS: list[str] = []


@shared_task(base=ReliableTask, name="test_ends_of_runs.acts")
def acts() -> Any:
    RUNS.append("atomic")
    Effect.objects.create(name="acts")
    return ACT["do"]()


@shared_task(base=ReliableTask, name="test_ends_of_runs.acts_outside", atomic=False)
def acts_outside() -> Any:
    RUNS.append("not atomic")
    return ACT["do"]()


@shared_task(base=ReliableTask, name="test_ends_of_runs.retries", autoretry_for=(Exception,), default_retry_delay=0)
def retries() -> Any:
    RUNS.append("retries")
    Effect.objects.create(name="acts")
    return ACT["do"]()


@pytest.fixture(autouse=True)
def fresh(jobs: InProcess) -> None:
    RUNS.clear()


def deliver(jobs: InProcess, do: Callable[[], Any], task: Any = acts, *, careful: bool = False) -> Job:
    """Run a job once.

    Args:
        careful: as a redelivered message, with a committed claim.
    """
    ACT["do"] = do
    result = task.delay()
    jobs.last = [jobs.deliver(message, redelivered=careful) for message in jobs.take()]
    return jobs.row(result)


def lose_the_session() -> None:
    """The server ends the session of the run's transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()

    def terminate() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", pid)

    elsewhere(terminate)


def rescue() -> None:
    """What a sweeper does once the lease is over."""
    Job.objects.update(lease_at=Now() - datetime.timedelta(seconds=1))
    assert lifecycle.rescue("default", 10) == 1


# --- B2: which settlement is this run's own ---------------------------------------------------------------------------


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_b2_a_rescue_is_not_taken_for_this_runs_own_settlement(jobs: InProcess) -> None:
    def do() -> str:
        lose_the_session()
        elsewhere(rescue)
        return "late"

    job = deliver(jobs, do, careful=True)
    assert (job.status, job.reason, Effect.objects.count()) == ("waiting", "crash", 0)
    assert "task_success" not in jobs.last[0].signals
    ACT["do"] = lambda: "done"
    jobs.finish()
    assert (jobs.row(job).status, Effect.objects.count()) == ("succeeded", 1)


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_b2_a_cancel_is_not_taken_for_this_runs_own_settlement(jobs: InProcess) -> None:
    """The row still bears the name of the worker, which had run it before."""

    def retry_once() -> None:
        raise acts.retry(countdown=0)

    job = deliver(jobs, retry_once)
    assert job.worker
    jobs.sweep()

    def do() -> str:
        lose_the_session()
        elsewhere(lambda: lifecycle.cancel([job.pk], "default", actor="test"))
        return "late"

    ACT["do"] = do
    Job.objects.update(due_at=Now())
    jobs.sweep()
    (delivered,) = jobs.work()
    assert (jobs.row(job).status, Effect.objects.count()) == ("cancelled", 0)
    assert "task_success" not in delivered.signals


class _LosesTheAnswer:
    """The next COMMIT is done, and its answer lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.armed = False
        do_commit = connections["default"]._commit

        def lossy() -> None:
            do_commit()
            if self.armed:
                self.armed = False
                raise OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(connections["default"], "_commit", lossy)


@pytest.mark.servers
@pytest.mark.promise("I2")
def test_b2_a_settlement_whose_commit_lost_its_answer_is_this_runs_own(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour: a non-atomic run took its own settlement for another run's, and its success was not announced."""
    answer = _LosesTheAnswer(monkeypatch)

    def do() -> str:
        answer.armed = True
        return "done"

    job = deliver(jobs, do, acts_outside)
    assert (job.status, job.result, not answer.armed) == ("succeeded", '"done"', True)
    assert "task_success" in jobs.last[0].signals


# --- B6: the task closes its connection -------------------------------------------------------------------------------


def _goes_on() -> None:
    Effect.objects.create(name="too late")


def _fails() -> None:
    raise ValueError("mine")


def _fails_because_of_it() -> None:
    try:
        Effect.objects.create(name="too late")
    except DatabaseError as error:
        raise ValueError("wrapped") from error


@pytest.mark.servers  # SQLite in memory is not closed
@pytest.mark.promise("I6")
@pytest.mark.parametrize(
    ("close", "then", "task", "careful"),
    [
        (lambda: connection.close(), lambda: None, acts, False),
        (lambda: connection.close(), _goes_on, acts, True),
        (close_old_connections, _goes_on, acts, False),
        (close_old_connections, _goes_on, retries, False),
        (lambda: request_finished.send(sender=None), lambda: None, acts, True),
    ],
)
def test_b6_a_task_that_closes_its_connection_fails_at_once_and_says_so(
    jobs: InProcess, close: Any, then: Any, task: Any, careful: bool
) -> None:
    def do() -> Any:
        close()
        return then()

    job = deliver(jobs, do, task, careful=careful)
    assert (job.status, job.failures, job.interruptions, RUNS) == ("failed", 1, 0, [RUNS[0]]), job.error
    assert "closed the database connection of its transaction" in job.error
    assert "atomic = False" in job.error
    assert Effect.objects.count() == 0
    assert jobs.kinds(job) == ["failure"]
    assert "task_failure" in jobs.last[0].signals
    assert not connection.in_atomic_block
    assert deliver(jobs, lambda: None).status == "succeeded"


@pytest.mark.servers
@pytest.mark.parametrize("then", [_fails, _fails_because_of_it])
def test_b6_an_error_of_the_tasks_own_is_in_the_traceback(jobs: InProcess, then: Any) -> None:
    def do() -> Any:
        connection.close()
        then()

    job = deliver(jobs, do)
    assert (job.status, job.interruptions) == ("failed", 0)
    assert "closed the database connection" in job.error
    assert "ValueError" in job.traceback


def _reconnects() -> None:
    connection.close()
    connection.connect()


@pytest.mark.servers
@pytest.mark.promise("I3")
@pytest.mark.parametrize("reconnect", [_reconnects, lambda: connection.connect()])
@pytest.mark.parametrize("then", [lambda: None, _goes_on, _fails])
@pytest.mark.parametrize("careful", [False, True])
def test_b6_a_task_that_reconnects_does_not_succeed_without_its_effects(
    jobs: InProcess, reconnect: Any, then: Any, careful: bool
) -> None:
    """Django's books then show no transaction. What the new session wrote is committed by itself, as after a raw
    COMMIT; what the old one wrote is lost, and so is the row's lock."""

    def do() -> None:
        Effect.objects.create(name="lost")
        reconnect()
        then()

    job = deliver(jobs, do, careful=careful)
    assert (job.status, job.failures, job.interruptions) == ("failed", 1, 0), job.error
    assert "closed the database connection of its transaction" in job.error
    assert not Effect.objects.filter(name="lost").exists()
    assert jobs.kinds(job) == ["failure"]
    assert not connection.in_atomic_block
    assert deliver(jobs, lambda: None).status == "succeeded"


# --- B7: a transaction that was idle for too long ---------------------------------------------------------------------


def _idles() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = '100ms'")
    time.sleep(0.4)


def _in_a_block() -> None:
    with transaction.atomic():
        Effect.objects.create(name="too late")


@pytest.mark.servers
@pytest.mark.promise("I6")
@pytest.mark.parametrize(
    ("then", "careful"), [(lambda: None, True), (_goes_on, False), (_in_a_block, True), (_fails_because_of_it, False)]
)
def test_b7_a_transaction_that_was_idle_for_too_long_has_one_clear_end(
    jobs: InProcess, then: Any, careful: bool
) -> None:
    def do() -> Any:
        _idles()
        then()

    job = deliver(jobs, do, careful=careful)
    assert (job.status, job.failures, job.interruptions, RUNS) == ("failed", 1, 0, ["atomic"]), job.error
    assert "idle-in-transaction timeout" in job.error + job.traceback
    assert Effect.objects.count() == 0
    assert "task_success" not in jobs.last[0].signals
    assert deliver(jobs, lambda: None).status == "succeeded"


@pytest.mark.servers
def test_b7_an_error_of_the_tasks_own_is_kept(jobs: InProcess) -> None:
    def do() -> Any:
        _idles()
        raise ValueError("mine")

    job = deliver(jobs, do)
    assert (job.status, job.failures, job.interruptions) == ("failed", 1, 0)
    assert job.error == "ValueError: mine"


@pytest.mark.servers
def test_b7_a_retry_of_the_tasks_own_is_kept(jobs: InProcess) -> None:
    def do() -> Any:
        _idles()
        raise ValueError("mine")

    job = deliver(jobs, do, retries)
    assert (job.status, job.failures, job.interruptions) == ("waiting", 1, 0)
    assert job.error == "ValueError: mine"


@pytest.mark.servers
@pytest.mark.promise("I5")
def test_b7_an_error_raised_because_of_an_outage_costs_no_attempt(jobs: InProcess) -> None:
    def do() -> Any:
        lose_the_session()
        _fails_because_of_it()

    job = deliver(jobs, do)
    assert (job.status, job.failures, job.interruptions) == ("waiting", 0, 1)


# --- B8: exceptions that are no Exception -----------------------------------------------------------------------------


class _Own(BaseException):
    pass


@pytest.mark.promise("I6", "I7")
@pytest.mark.parametrize("task", [acts, acts_outside])
@pytest.mark.parametrize("error", [_Own("mine"), GeneratorExit("mine")], ids=repr)
def test_b8_a_base_exception_of_the_tasks_own_is_its_failure(jobs: InProcess, error: Any, task: Any) -> None:
    def do() -> None:
        raise error

    job = deliver(jobs, do, task)
    assert (job.status, job.failures, job.interruptions, len(RUNS)) == ("failed", 1, 0, 1)
    assert type(error).__name__ in job.error
    assert "mine" in job.error
    assert Effect.objects.count() == 0
    assert "task_failure" in jobs.last[0].signals


@pytest.mark.parametrize("ends", ["cancelled", "gone"])
def test_b8_a_process_that_is_to_stop_does_so_without_its_job(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    def stop() -> None:
        raise WorkerShutdown(0)

    real = recovery.until_written

    def taken_away_first(claim: Any, write: Any) -> Any:
        rows = Job.objects.filter(pk=claim.job.pk)
        if ends == "gone":
            rows.delete()
        else:
            monkeypatch.setattr(recovery, "blame", after_cancel(recovery.blame, claim))
        return real(claim, write)

    def after_cancel(blame: Any, claim: Any) -> Any:
        def blamed(*args: Any) -> Any:
            lifecycle.cancel([claim.job.pk], "default", actor="test")
            return blame(*args)

        return blamed

    monkeypatch.setattr(recovery, "until_written", taken_away_first)
    with pytest.raises(WorkerShutdown):
        deliver(jobs, stop)
    assert Effect.objects.count() == 0
    assert [row.status for row in Job.objects.all()] == (["cancelled"] if ends == "cancelled" else [])


def test_b8_what_tells_a_process_or_a_greenlet_to_stop_is_no_failure() -> None:
    gevent = pytest.importorskip("gevent")
    stops = [KeyboardInterrupt(), WorkerShutdown(0), SystemExit(-241), gevent.Timeout(), gevent.GreenletExit()]
    assert all(outcomes.ends_process(error) for error in stops)
    assert not any(outcomes.ends_process(error) for error in [SystemExit(1), _Own(), GeneratorExit(), ValueError()])


# --- A12: conflicts with other transactions ---------------------------------------------------------------------------


def _conflicts() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")


@pytest.mark.promise("I6")
def test_a12_an_end_that_meets_conflicts_is_written_within_its_lease(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses grew as in an outage, past the lease: a sweep took the job from a run that lived, as crashed."""
    now, tries, session = [0.0], [0], connection.connection
    monkeypatch.setattr(recovery.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(recovery.time, "sleep", lambda pause: now.__setitem__(0, now[0] + pause))
    monkeypatch.setattr(recovery.db_errors, "is_conflict", lambda *args: True)
    monkeypatch.setattr(recovery.db_errors, "is_transient", lambda *args: True)

    def write() -> str:
        tries[0] += 1
        if tries[0] <= 12:
            raise OperationalError("could not serialize access")
        return "written"

    claim: Any = SimpleNamespace(using="default", job=SimpleNamespace(pk="a job"))
    assert recovery.until_written(claim, write) == "written"
    assert now[0] < 1.0
    assert connection.connection is session, "it is whole"


@pytest.mark.servers
@pytest.mark.promise("I6")
@pytest.mark.parametrize("task", [acts, acts_outside])
@override_settings(RELIABLE_JOBS={"MAX_CONFLICTS": 3, "MAX_INTERRUPTIONS": 1})
def test_a12_a_job_that_conflicts_at_every_run_ends_failed(jobs: InProcess, task: Any) -> None:
    job = deliver(jobs, _conflicts, task)
    assert (job.status, job.reason, job.interruptions, job.failures) == ("waiting", "interrupted", 0, 0)
    jobs.finish()
    job = jobs.row(job)
    assert (job.status, job.reason, job.failures, job.crashes, len(RUNS)) == ("failed", "interrupted", 0, 0, 5)
    assert "MAX_INTERRUPTIONS=1" in job.error


@pytest.mark.servers
@pytest.mark.promise("I6")
@override_settings(RELIABLE_JOBS={"MAX_CONFLICTS": 4, "MAX_INTERRUPTIONS": 1})
def test_a12_a_long_job_that_always_conflicts_ends_failed(jobs: InProcess) -> None:
    """The hour in which conflicts were counted held one or two of its runs only: it went on for ever."""

    def takes_an_hour() -> None:
        acts.request.reliable_began -= 3600.0
        _conflicts()

    job = deliver(jobs, takes_an_hour)
    for _ in range(10):
        JobEvent.objects.update(at=F("at") - datetime.timedelta(seconds=3600.0))
        with contextlib.suppress(AssertionError):  # it is not finished by one run
            jobs.finish(1)
    jobs.work()
    assert (jobs.row(job).status, len(RUNS)) == ("failed", 6)


@pytest.mark.parametrize("run", [0.0, 25.0, 3600.0])
@pytest.mark.parametrize("limit", [1, 100, 10_000])
def test_a12_so_many_runs_and_pauses_fit_into_the_window(run: float, limit: int) -> None:
    pauses = [delays.conflict_delay(limit) for _ in range(500)]
    assert limit * (run + statistics.mean(pauses)) < delays.conflict_window(limit, run)


@pytest.mark.servers
@pytest.mark.promise("I5")
def test_a12_a_claim_that_meets_a_transaction_is_tried_again_at_once(
    jobs: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """On the session that it has, and without a word: nothing is wrong with the database."""
    met: list[object] = []

    def conflicts_twice(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "FOR NO KEY UPDATE" in sql and len(met) < 2:
            met.append(connection.connection)
            sql, params = "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", None
        return execute(sql, params, many, context)

    ACT["do"] = lambda: None
    task_result = acts.delay()
    with connection.execute_wrapper(conflicts_twice):
        jobs.work()
    job = jobs.row(task_result)
    assert (job.status, job.interruptions, len(met)) == ("succeeded", 0, 2)
    assert met[0] is met[1] is connection.connection
    assert "Holding the message" not in caplog.text
