"""Attempts to break the promises that once succeeded: each of these tests was red against an earlier core."""

from __future__ import annotations

import datetime
import json
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.backends.base import DisabledBackend
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone
from django_celery_results.models import TaskResult

from reliable_jobs import lifecycle
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.enqueue import insert, outbox
from reliable_jobs.errors import EnqueueError
from reliable_jobs.models import Job
from reliable_jobs.results import JobResult
from reliable_jobs.sweep import ensure_jobs, sweeper
from tests.celery_app import app
from tests.promises import adversary_tasks as bad
from tests.support.harness import Stack, Worker, lines, wait_until
from tests.support.private_servers import CuttableProxy
from tests.testapp import tasks
from tests.testapp.models import Effect, Parent

pytestmark = pytest.mark.servers

INCLUDE = ("-I", "tests.promises.adversary_tasks")


@pytest.fixture(scope="module")
def _hostile_worker(_queue_of_module: Stack, django_db_blocker: Any) -> Worker:
    with django_db_blocker.unblock(), _queue_of_module.active():
        _queue_of_module.declare()
        return _queue_of_module.worker(options=INCLUDE, LEASE=5)  # no run may lose its own on a slow machine


@pytest.fixture
def worker(_hostile_worker: Worker, stack: Stack) -> Worker:
    """One child only: what a body leaves behind meets the next job."""
    return _hostile_worker


@pytest.fixture
def rows_only(stack: Stack) -> Iterator[None]:
    """Enqueue writes the row; only a sweep publishes."""
    with override_settings(RELIABLE_JOBS={**stack.settings, "DISPATCH": "relay"}):
        yield


@pytest.fixture
def declarations() -> Iterator[None]:
    before = list(ensure_jobs._declared)
    ensure_jobs._declared.clear()
    yield
    ensure_jobs._declared.clear()
    ensure_jobs._declared.extend(before)


def foreign(stack: Stack, name: str) -> None:
    """A message that no outbox wrote."""
    headers = {"lang": "py", "task": tasks.effect.name, "id": str(uuid.uuid4())}
    stack.publish_raw(json.dumps([[name], {}, {}]).encode(), "application/json", headers)


def make_old(**ages: float) -> None:
    """Set times of all rows back, in seconds."""
    Job.objects.update(**{name: timezone.now() - datetime.timedelta(seconds=age) for name, age in ages.items()})


# --- one bad row must not hold up the others --------------------------------------------------------------------------


@pytest.mark.promise("I2")
@pytest.mark.parametrize("queue", ["amq.forbidden", "ö" * 200])
def test_a_queue_name_that_the_broker_refuses_holds_up_nobody_else(
    stack: Stack, idle_queue: str, rows_only: None, queue: str
) -> None:
    evil = tasks.effect.delay("evil")
    Job.objects.update(queue=queue)  # at the call the second would be refused
    tasks.effect.delay("good")
    stack.sweep()
    assert stack.depth() == 1
    assert stack.kinds(stack.job(evil)) == ["unroutable"]


@pytest.mark.promise("I2")
def test_a_refused_message_holds_up_no_other_and_opens_no_breaker(stack: Stack, idle_queue: str) -> None:
    """RabbitMQ closes the channel (406) over a user_id that is not the connection's, without naming the message."""
    with transaction.atomic():
        evil = tasks.effect.apply_async(("evil",), user_id="somebody else")
        tasks.effect.delay("good")
    assert stack.depth() == 1
    assert not publisher(app).breaker_open
    stack.worker()  # where nobody consumes and messages lie, the sweeper sends none again
    wait_until(lambda: stack.sweep() and stack.kinds(stack.job(evil)) == ["unroutable"], "its history says so")


@pytest.mark.promise("I2")
def test_an_envelope_that_cannot_be_read_holds_up_nobody_else(stack: Stack, idle_queue: str, rows_only: None) -> None:
    evil = tasks.effect.delay("evil")
    Job.objects.update(envelope='{"headers": {"x": {"__type__": "evil", "__value__": 1}}}')
    tasks.effect.delay("good")
    stack.sweep()
    assert stack.depth() == 1
    assert stack.kinds(stack.job(evil)) == ["unroutable"]


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"x": {"__type__": "evil", "__value__": 1}}},
        {"expires": datetime.datetime.max.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=-5)))},
        {"eta": datetime.datetime.max.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=-5)))},
        {"expires": 10**12},
    ],
    ids=["header of an unknown kombu type", "expires in the year 10000", "eta in the year 10000", "huge expires"],
)
@pytest.mark.promise("I7")
def test_what_could_never_be_read_again_is_refused_at_the_call(
    stack: Stack, idle_queue: str, options: dict[str, Any]
) -> None:
    with pytest.raises(EnqueueError):
        tasks.effect.apply_async(("evil",), **options)
    assert not Job.objects.exists()


@pytest.mark.promise("I2")
def test_a_bad_row_of_a_declared_queryset_keeps_no_other_from_its_job(
    stack: Stack, idle_queue: str, declarations: None
) -> None:
    for name in "abc":
        Parent.objects.create(name=name)

    def args(row: Parent) -> tuple[Any, ...]:
        if row.name == "a":
            raise ValueError("no arguments for this one")
        return (row.name,)

    ensure_jobs.ensure_jobs(tasks.effect, lambda: Parent.objects.order_by("name"), args=args)
    assert ensure_jobs.sweep_declared(now=10.0**9) == 2


def test_one_task_may_have_two_declared_querysets(stack: Stack, idle_queue: str, declarations: None) -> None:
    for name in "ab":
        Parent.objects.create(name=name)
    ensure_jobs.ensure_jobs(tasks.effect, lambda: Parent.objects.filter(name="a"))
    ensure_jobs.ensure_jobs(tasks.effect, lambda: Parent.objects.filter(name="b"))
    assert ensure_jobs.sweep_declared(now=10.0**9) == 2


# --- publishing and overtaking ----------------------------------------------------------------------------------------


@pytest.mark.promise("I2")
def test_a_job_with_a_priority_is_published_with_it(stack: Stack, idle_queue: str) -> None:
    tasks.effect.apply_async(("urgent",), priority=5)
    [message] = stack.take_messages()
    assert message.properties["priority"] == 5


@pytest.mark.promise("I2")
def test_a_lost_job_of_a_rare_priority_is_found_in_a_busy_queue(stack: Stack, idle_queue: str) -> None:
    lost = tasks.effect.apply_async(("lost",), priority=5)
    stack.purge()
    make_old(due_at=60, check_at=30)
    stack.worker()
    for _ in range(10):
        stack.ends(tasks.effect.delay("stream"))
        sweeper.sweep(app)
    stack.ends(lost)


@pytest.mark.promise("I8")
def test_a_cancelled_job_has_overtaken_nobody(stack: Stack, idle_queue: str) -> None:
    for number in range(5):
        tasks.effect.delay(str(number))
    make_old(due_at=60, check_at=1)
    with override_settings(RELIABLE_JOBS={**stack.settings, "RECOVERY_LIMIT": 1, "GRACE": 15}):
        lifecycle.cancel([tasks.effect.delay("last").id], "default", actor="me")
        assert sweeper.sweep(app).republished <= 1


class _AnyDatetime(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, datetime.datetime)


class FastClock(datetime.datetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return datetime.datetime.now(tz) + datetime.timedelta(minutes=10)


@pytest.mark.promise("K7")
def test_a_web_server_whose_clock_is_fast_starts_no_job_before_its_eta(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    eta = timezone.now() + datetime.timedelta(minutes=5)
    with monkeypatch.context() as fast:
        fast.setattr(timezone, "datetime", FastClock)
        for module in (insert, outbox):
            fast.setattr(module, "datetime", types.SimpleNamespace(**{**vars(datetime), "datetime": FastClock}))
        assert timezone.now() > eta
        tasks.effect.apply_async(("early",), eta=eta)
    assert Job.objects.get().due_at == eta


@pytest.mark.promise("I2")
def test_a_child_forked_while_the_publishers_lock_is_held_is_not_stuck(stack: Stack, idle_queue: str) -> None:
    script = stack.script(
        """
        import os, signal
        from reliable_jobs.dispatch import publisher
        publisher._publishers_lock.acquire()
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            publisher.publisher(app)
            os._exit(0)
        print("child ended with", os.waitpid(pid, 0)[1], flush=True)
        """
    )
    script.wait_for_line("child ended with")
    assert "child ended with 0" in script.log


@pytest.mark.promise("I2")
def test_a_threads_worker_works_on_after_its_connection_was_cut(
    stack: Stack, idle_queue: str, broker_proxy: CuttableProxy, outside: Path, gate: Path
) -> None:
    """Celery restores its prefetch count with each ack then: a call that waits for the broker's answer, made by the
    threads of the pool, on the connection that the main thread reads from. They hung, for good."""
    worker = stack.worker(pool="threads", concurrency=8, broker_url=broker_proxy.url(stack.broker_url))
    for round_ in range(3):
        path = gate.with_name(f"gate {round_}")
        for number in range(8):
            tasks.gated.delay(f"{round_} {number}", str(outside), str(path))
        wait_until(lambda round_=round_: len(lines(outside)) == 8 * (round_ + 1), "the bodies run")
        broker_proxy.cut()
        worker.wait_for_line("Connected to", round_ + 2)
        tasks.effect.bulk_delay((f"{round_} after {number}",) for number in range(100))
        path.touch()
        stack.all_end()


# --- the database's troubles ------------------------------------------------------------------------------------------


@pytest.mark.promise("I5")
def test_a_read_only_database_fails_no_job_and_drops_no_foreign_message(stack: Stack, idle_queue: str) -> None:
    """As a failover leaves it. A message from elsewhere has no row yet: acknowledged, it would be gone."""
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{stack.database_name}" SET default_transaction_read_only = on')
    try:
        worker = stack.worker()
        ours = tasks.effect.delay("ours")  # this process's session is older and still writes
        foreign(stack, "foreign")
        worker.wait_for_line("read-only transaction")
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f'ALTER DATABASE "{stack.database_name}" RESET default_transaction_read_only')
    stack.ends(ours)
    wait_until(lambda: stack.effects("foreign") == 1, "the message from elsewhere has run")
    assert "raised unexpected" not in worker.log
    assert stack.job(ours).failures == 0


@pytest.mark.promise("I5")
def test_a_soft_time_limit_while_the_database_is_away_fails_nothing(
    stack: Stack, idle_queue: str, database_proxy: CuttableProxy
) -> None:
    worker = stack.worker(options=INCLUDE, database_url=database_proxy.url(stack.database_url))
    database_proxy.refuse(True)
    database_proxy.cut()
    result = bad.softly_limited.delay("held")
    worker.wait_for_line("Soft time limit")
    worker.wait_for_line("received", 2)
    database_proxy.refuse(False)
    job = stack.ends(result)
    assert "raised unexpected" not in worker.log
    assert (job.failures, stack.effects("held")) == (0, 1)


@pytest.mark.promise("I5")
def test_a_deadlock_costs_no_attempt_though_the_task_retries_everything(
    stack: Stack, worker: Worker, outside: Path
) -> None:
    job = stack.ends(bad.deadlocks.delay("once", str(outside), 3), sweeping=True)
    assert (job.failures, job.interruptions, stack.effects("once")) == (0, 0, 1)
    assert stack.kinds(job) == ["interruption"] * 3


@pytest.mark.promise("I5")
@pytest.mark.parametrize("state", ["53100", "25006"], ids=["its disk is full", "it only reads, after a failover"])
def test_a_database_that_cannot_write_costs_no_attempt(stack: Stack, worker: Worker, outside: Path, state: str) -> None:
    job = stack.ends(bad.meets_an_outage.delay("once", str(outside), state), sweeping=True)
    assert (job.failures, job.interruptions, stack.effects("once")) == (0, 1, 1)


@pytest.mark.slow
@pytest.mark.promise("I4")
def test_a_live_run_survives_a_fenced_block_longer_than_its_lease(stack: Stack, idle_queue: str, outside: Path) -> None:
    """While the block holds the row, the heartbeat can't extend the lease, and then the lock goes."""
    stack.worker(options=INCLUDE, LEASE=3)
    result = bad.fences_long.delay("once", str(outside), 4.3, 1.0)
    wait_until(lambda: lifecycle.rescue("default", 10) or stack.job(result).is_final, "an end", every=0.01)
    stack.ends(result, sweeping=True)
    assert (stack.effects("once"), len(lines(outside))) == (1, 1)


# --- bodies that misbehave --------------------------------------------------------------------------------------------


@pytest.mark.promise("I6")
def test_a_body_that_snoozes_and_then_raises_does_not_go_round_for_ever(
    stack: Stack, worker: Worker, outside: Path
) -> None:
    job = stack.ends(bad.snoozes_then_raises.delay(str(outside)), "failed", sweeping=True)
    assert "after snooze" in job.error
    assert len(lines(outside)) == 1


@pytest.mark.promise("K4")
def test_an_error_after_a_quiet_retry_is_recorded_with_its_traceback(
    stack: Stack, worker: Worker, outside: Path
) -> None:
    result = bad.asks_quietly_then_raises.delay(str(outside))
    wait_until(lambda: stack.job(result).failures == 1, "one attempt")
    job = stack.job(result)
    assert "after a quiet retry" in job.error
    assert "asks_quietly_then_raises" in job.traceback
    assert stack.kinds(job) == ["failure"]


@pytest.mark.promise("K7")
def test_replace_honours_eta_and_expires(stack: Stack, worker: Worker) -> None:
    eta = timezone.now() + datetime.timedelta(hours=1)
    later = bad.replaced_with_eta.delay("later", eta.isoformat())
    wait_until(lambda: stack.job(later).content_version == 1, "it is replaced")
    assert stack.job(later).due_at == eta
    stack.ends(bad.replaced_with_expires.delay("too late"), "expired", sweeping=True)


@pytest.mark.promise("I3")
def test_a_body_may_call_its_own_task_directly(stack: Stack, worker: Worker) -> None:
    stack.ends(bad.walks.delay(2), sweeping=True)
    assert stack.effects("walk") == 3


@pytest.mark.promise("K4")
def test_an_error_text_that_no_encoding_takes_is_recorded_and_retried(
    stack: Stack, worker: Worker, tmp_path: Path
) -> None:
    atomic = stack.ends(bad.raises_surrogate.delay(), "failed")
    leased = stack.ends(bad.raises_surrogate_outside.delay(str(tmp_path / "leased")), "failed", sweeping=True)
    retried = stack.ends(bad.retries_surrogate.delay(str(tmp_path / "retried")), "failed", sweeping=True)
    assert all("no such file: caf\\udce9.txt" in job.error for job in (atomic, leased, retried))
    assert (len(lines(tmp_path / "leased")), len(lines(tmp_path / "retried"))) == (1, 2)


@pytest.mark.promise("K4")
def test_an_exception_that_cannot_be_printed_is_still_named(stack: Stack, worker: Worker, outside: Path) -> None:
    job = stack.ends(bad.raises_mute.delay(str(outside)), "failed")
    assert "Mute" in job.error


@pytest.mark.promise("I6")
def test_a_body_cancelled_by_asyncio_fails_and_does_not_end_its_worker(
    stack: Stack, worker: Worker, outside: Path
) -> None:
    job = stack.ends(bad.cancelled_by_asyncio.delay(str(outside)), "failed")
    assert "CancelledError" in job.error


@pytest.mark.promise("I6")
def test_a_transaction_left_open_fails_its_job_and_no_neighbour(stack: Stack, worker: Worker) -> None:
    careless = bad.leaves_atomic_open.delay("never committed")
    stack.ends(tasks.effect.delay("neighbour"), sweeping=True)
    assert "still open" in stack.ends(careless, "failed", sweeping=True).error
    assert (stack.effects("never committed"), stack.effects("neighbour")) == (0, 1)


@pytest.mark.promise("I6")
@pytest.mark.parametrize("task", [bad.leaves_atomic_open_outside, bad.leaves_begin])
def test_a_transaction_left_open_by_a_leased_body_fails_it_after_one_run(
    stack: Stack, worker: Worker, outside: Path, task: Any
) -> None:
    careless = task.delay(str(outside))
    stack.ends(tasks.effect.delay("neighbour"), sweeping=True)
    assert "still open" in stack.ends(careless, "failed", sweeping=True).error
    assert (len(lines(outside)), stack.effects("neighbour")) == (1, 1)


def test_a_leased_body_that_leaves_autocommit_off_is_settled_all_the_same(
    stack: Stack, worker: Worker, outside: Path
) -> None:
    stack.ends(bad.leaves_autocommit_off.delay(str(outside)), sweeping=True)
    assert len(lines(outside)) == 1


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I2")
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_result_backend_that_fails_starves_no_worker(stack: Stack, idle_queue: str, pool: str) -> None:
    """Chaos seed 50, the database's disk full: Celery's tracer raised the backend's error, the pool's threads swallowed
    it, and their messages stayed unacknowledged; after as many as were prefetched the worker got no more."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE django_celery_results_taskresult RENAME TO away")
    try:
        stack.worker(pool=pool, concurrency=2, options=["--prefetch-multiplier", "1"])
        results = [tasks.effect.delay(f"without a backend {n}") for n in range(6)]
        for result in results:
            assert stack.ends(result).status == "succeeded"
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO django_celery_results_taskresult")


@pytest.mark.promise("K2")
def test_get_answers_from_the_row_where_the_backend_knows_nothing(stack: Stack, worker: Worker) -> None:
    result = tasks.effect.delay("known")
    stack.ends(result)
    wait_until(lambda: TaskResult.objects.filter(task_id=result.id, status="SUCCESS").exists(), "the backend knows")
    TaskResult.objects.all().delete()
    assert tasks.effect.AsyncResult(result.id).get(timeout=5) == "known"
    without = JobResult(result.id, backend=DisabledBackend(app), app=app)
    assert without.state == "SUCCESS"
    assert without.get(timeout=5) == "known"


@pytest.mark.promise("K2")
def test_a_requeued_job_is_pending_and_not_what_its_earlier_life_ended_as(stack: Stack, worker: Worker) -> None:
    result = tasks.fails.delay("again")
    stack.ends(result, "failed")
    wait_until(lambda: TaskResult.objects.filter(task_id=result.id, status="FAILURE").exists(), "the backend knows")
    lifecycle.requeue([result.id], "default", actor="me")
    assert tasks.fails.AsyncResult(result.id).state == "PENDING"


@pytest.mark.promise("K11")
def test_a_job_that_waits_for_its_code_is_not_told_as_failed(stack: Stack, idle_queue: str) -> None:
    result = tasks.effect.delay("early")
    row = stack.job(result)
    Job.objects.update(task="nobody.knows", envelope=row.envelope.replace(row.task, "nobody.knows"))
    stack.purge()
    stack.publish(row)
    worker = stack.worker()
    worker.wait_for_line("Received unregistered task of type 'nobody.knows'")
    wait_until(lambda: stack.job(result).reason == "parked", "the worker has given the job back")
    assert stack.job(result).status == "waiting"
    assert tasks.effect.AsyncResult(result.id).state == "PENDING"
    assert not TaskResult.objects.filter(task_id=result.id, status="FAILURE").exists()


def test_retry_takes_expires_in_seconds_and_keeps_custom_headers(stack: Stack, worker: Worker) -> None:
    stack.ends(bad.retries_with_expires.delay(), sweeping=True)
    stack.ends(bad.retries_with_other_arguments.apply_async((True,), headers={"tenant": "t1"}), sweeping=True)
    assert list(Effect.objects.values_list("name", "value")) == [("t1", "t1")]
