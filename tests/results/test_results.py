"""A reliable task's AsyncResult: the settled row answers first, the result backend is its cache."""

from __future__ import annotations

import datetime
import inspect
import uuid
from typing import Any

import pytest
from celery import chain, chord, group, shared_task
from celery.backends.rpc import RPCBackend
from celery.exceptions import TaskRevokedError, TimeoutError
from celery.result import AsyncResult, allow_join_result
from django.db import transaction
from django.utils import timezone
from django_celery_results.models import TaskResult

from reliable_jobs import ReliableTask
from reliable_jobs.errors import NotCommitted
from reliable_jobs.models import Job
from reliable_jobs.results import JobResult, waiting
from reliable_jobs.status import Reason
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs = inprocess.jobs
rows = inprocess.rows
second_database = inprocess.second_database


@shared_task(base=ReliableTask, name="test_results.structure")
def structure() -> dict[str, Any]:
    return {"id": uuid.UUID(int=1), "at": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), "n": [1, None]}


def fresh(result: Any) -> AsyncResult[Any]:
    """As another process would ask."""
    return tasks.effect.AsyncResult(result.id)


def forget(result: Any) -> None:
    """As if the worker had died between its commit and the store."""
    TaskResult.objects.filter(task_id=result.id).delete()


def test_celery_still_reads_every_answer_through_one_method() -> None:
    """Private in Celery; should it be renamed, this test says so."""
    for name in ("result", "state", "traceback", "children", "date_done"):
        source = inspect.getsource(getattr(AsyncResult, name).fget)
        assert "_get_task_meta()" in source or "_maybe_reraise" in source, name
    assert "_cache" in inspect.getsource(AsyncResult._get_task_meta)


def test_delay_and_asyncresult_give_the_same_kind() -> None:
    assert isinstance(tasks.effect.AsyncResult(str(uuid.uuid4())), JobResult)


@pytest.mark.parametrize("stored", [True, False])
def test_a_success_is_read_from_the_row_where_the_backend_does_not_know(jobs: InProcess, stored: bool) -> None:
    result = structure.delay()
    jobs.work()
    if not stored:
        forget(result)
    asked = structure.AsyncResult(result.id)
    assert (asked.state, asked.ready(), asked.successful(), asked.failed()) == ("SUCCESS", True, True, False)
    value = asked.get(timeout=1)
    assert value["n"] == [1, None]
    if not stored:
        assert value["id"] == uuid.UUID(int=1)


@pytest.mark.parametrize("stored", [True, False])
def test_a_failure_is_read_from_the_row_where_the_backend_does_not_know(jobs: InProcess, stored: bool) -> None:
    result = tasks.fails.delay("x")
    jobs.work()
    if not stored:
        forget(result)
    asked = fresh(result)
    assert (asked.state, asked.failed()) == ("FAILURE", True)
    assert "no x" in str(asked.result)
    assert "raise ValueError" in asked.traceback
    with pytest.raises(Exception, match="no x"):
        asked.get(timeout=1)


def test_a_late_word_of_the_backend_can_not_contradict_a_settled_row(jobs: InProcess) -> None:
    result = tasks.fails.delay("x")
    jobs.work()
    for state in ("STARTED", "RETRY", "PENDING", "SUCCESS"):
        TaskResult.objects.filter(task_id=result.id).update(status=state)
        assert fresh(result).state == "FAILURE"


def test_a_waiting_job_is_pending_and_a_retrying_one_is_what_celery_says(jobs: InProcess) -> None:
    result = tasks.fails_first.delay("x", 2)
    assert result.state == "PENDING"
    assert not result.ready()
    jobs.work()
    assert fresh(result).state == "RETRY"
    jobs.finish()
    assert fresh(result).get(timeout=1) == "x"


def test_an_unknown_id_is_pending_as_in_celery(jobs: InProcess) -> None:
    assert tasks.effect.AsyncResult(str(uuid.uuid4())).state == "PENDING"
    assert tasks.effect.AsyncResult("no uuid").state == "PENDING"


@pytest.mark.parametrize("status", ["cancelled", "expired"])
def test_what_will_not_run_is_revoked(jobs: InProcess, status: str) -> None:
    result = tasks.effect.delay("x")
    Job.objects.update(status=status, finished_at=timezone.now(), error="why")
    asked = fresh(result)
    assert (asked.state, asked.ready()) == ("REVOKED", True)
    with pytest.raises((TaskRevokedError, RuntimeError)):
        asked.get(timeout=1)


def test_a_requeued_job_is_not_ready_any_more(jobs: InProcess) -> None:
    from reliable_jobs import lifecycle

    result = tasks.fails.delay("x")
    jobs.work()
    lifecycle.requeue([uuid.UUID(result.id)], "default", actor="ann")
    assert not fresh(result).ready(), "the backend's old answer must not stand for a job that is to run again"


def test_an_answer_is_asked_for_once(jobs: InProcess, django_assert_num_queries: Any) -> None:
    result = tasks.effect.delay("x")
    jobs.work()
    asked = fresh(result)
    assert asked.state == "SUCCESS"
    with django_assert_num_queries(0):
        assert (asked.state, asked.result, asked.successful()) == ("SUCCESS", "x", True)


def test_a_row_that_is_pruned_leaves_the_answer_to_the_backend(jobs: InProcess) -> None:
    result = tasks.effect.delay("x")
    jobs.work()
    Job.objects.all().delete()
    assert fresh(result).get(timeout=1) == "x"


def test_revoke_cancels_a_waiting_job(jobs: InProcess) -> None:
    result = tasks.effect.apply_async(("x",), countdown=60)
    result.revoke()
    row = jobs.row(result)
    assert (row.status, row.reason) == ("cancelled", Reason.REVOKED)
    assert fresh(result).state == "REVOKED"
    assert jobs.kinds(row) == ["cancel"]


def test_revoke_of_a_job_whose_message_is_out_lets_nothing_run(jobs: InProcess) -> None:
    result = tasks.effect.delay("x")
    result.revoke()
    jobs.work()
    assert (jobs.row(result).status, jobs.effects("x")) == ("cancelled", 0)


def test_revoke_of_a_settled_job_changes_nothing(jobs: InProcess) -> None:
    result = tasks.effect.delay("x")
    jobs.work()
    result.revoke()
    assert jobs.row(result).status == "succeeded"


def test_a_job_of_another_database_is_found_and_revoked(jobs: InProcess, second_database: str) -> None:
    done = tasks.effect.apply_async(("x",), using="second")
    jobs.work()
    forget(done)
    assert fresh(done).state == "SUCCESS"
    waiting = tasks.effect.apply_async(("y",), using="second", countdown=60)
    fresh(waiting).revoke()
    assert Job.objects.using("second").get(pk=waiting.id).status == "cancelled"


# --- backends whose results come as messages (A4) ---------------------------------------------------------------------


@pytest.fixture
def rpc(monkeypatch: pytest.MonkeyPatch) -> RPCBackend:
    backend = RPCBackend(app)
    monkeypatch.setattr(type(app), "backend", property(lambda self: backend))
    return backend


@pytest.mark.promise("I9")
def test_a4_with_rpc_a_call_needs_no_broker_and_the_row_answers(
    jobs: InProcess, rpc: RPCBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RPCBackend, "get_task_meta", None)
    result = structure.apply_async(countdown=60)
    assert result.state == "PENDING"
    with pytest.raises(TimeoutError):
        result.get(timeout=0.2, interval=0.05)
    failed = tasks.fails.delay("x")
    jobs.finish()
    assert structure.AsyncResult(result.id).get(timeout=1)["n"] == [1, None]
    assert result.get(timeout=1)["n"] == [1, None]
    with pytest.raises(Exception, match="no x"):
        failed.wait(timeout=1)


def test_a4_with_rpc_get_waits_for_the_row(jobs: InProcess, rpc: RPCBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tasks.effect.delay("x")
    monkeypatch.setattr(waiting.time, "sleep", lambda seconds: jobs.work())
    assert result.get(timeout=5) == "x"
    Job.objects.all().delete()
    assert result.get(timeout=1) == "x"


@pytest.mark.promise("I9")
def test_a4_a_subscribing_backend_subscribes_for_plain_tasks_only(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the Redis backend does, over the network and for each call."""
    asked: list[str] = []

    class Subscribing(RPCBackend):
        def on_task_call(self, producer: Any, task_id: str) -> None:
            asked.append(task_id)

    backend = Subscribing(app)
    monkeypatch.setattr(type(app), "backend", property(lambda self: backend))
    tasks.effect.delay("x")
    tasks.effect.bulk_delay([("y",)])
    tasks.effect.apply_async(("z",), queue="elsewhere")
    assert asked == []
    plain = app.send_task("test_results.of_nobody")
    assert asked == [plain.id]


def test_only_celerys_asynchronous_backends_subscribe_at_a_call() -> None:
    """compat.celery_results.leave_unsubscribed() knows them by that."""
    from celery.backends.asynchronous import AsyncBackendMixin
    from celery.backends.base import Backend

    pytest.importorskip("redis")
    from celery.backends.redis import RedisBackend

    for backend in (RPCBackend, RedisBackend):
        assert issubclass(backend, AsyncBackendMixin)
        assert backend.on_task_call is not Backend.on_task_call


# --- waiting for what can't happen (E10) ------------------------------------------------------------------------------


@pytest.mark.promise("I9")
@pytest.mark.parametrize(
    "enqueue",
    [
        lambda: tasks.effect.delay("x"),
        lambda: tasks.effect.apply_async(("x",), countdown=60),
        lambda: tasks.effect.AsyncResult(tasks.effect.bulk_delay([("x",)])[0]),
        lambda: group(tasks.effect.s("x"), tasks.effect.s("y")).apply_async(),
        lambda: chain(tasks.effect.s("x"), tasks.effect.s()).apply_async(),
        lambda: chord([tasks.effect.s("x"), tasks.effect.s("y")], tasks.add.s([])).apply_async(),
    ],
    ids=["delay", "countdown", "bulk", "group", "chain", "chord"],
)
def test_e10_get_in_the_transaction_that_enqueued_raises_at_once(jobs: InProcess, enqueue: Any) -> None:
    with transaction.atomic():
        with transaction.atomic():
            result = enqueue()
        with pytest.raises(NotCommitted, match="after the transaction"):
            result.get(timeout=60)
        if isinstance(result, JobResult) and result.parent is None:
            with pytest.raises(NotCommitted):
                fresh(result).get(timeout=60)


def test_e10_get_after_the_commit_and_of_other_transactions_waits_as_ever(jobs: InProcess) -> None:
    with transaction.atomic():
        result = tasks.effect.apply_async(("x",), countdown=60)
        seen: list[Any] = []

        def look() -> None:
            with pytest.raises(TimeoutError):
                result.get(timeout=0.1, interval=0.05)
            seen.append(result.state)

        transaction.on_commit(look)
    assert seen == ["PENDING"]
    with transaction.atomic(), pytest.raises(TimeoutError):
        result.get(timeout=0.1, interval=0.05)


@shared_task(base=ReliableTask, name="test_results.waits_for_child", bind=True)
def waits_for_child(self: Any) -> Any:
    with allow_join_result():
        return tasks.effect.delay("child").get(timeout=60)


def test_e10_an_atomic_function_that_waits_for_its_child_fails_at_once(jobs: InProcess) -> None:
    job = jobs.run(waits_for_child)
    assert (job.status, "NotCommitted" in job.error) == ("failed", True), job.error
    assert jobs.effects("child") == 0


def test_e10_the_test_case_holds_a_transaction_that_is_not_the_callers(rows: InProcess) -> None:
    with pytest.raises(TimeoutError):
        tasks.effect.delay("x").get(timeout=0.1, interval=0.05)
