"""Runs through Celery's own request and tracer, in this process."""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import Ignore
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone
from django_celery_results.models import TaskResult

from reliable_jobs import ReliableTask
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import Reason
from tests.support import inprocess
from tests.support.harness import Stack
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

jobs = inprocess.jobs

HOOKS: list[tuple[str, Any]] = []


@pytest.fixture(autouse=True)
def _forget_hooks() -> None:
    HOOKS.clear()


class Hooked(ReliableTask):
    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        HOOKS.append(("on_success", retval))

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HOOKS.append(("on_failure", repr(exc)))

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HOOKS.append(("on_retry", repr(exc)))

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HOOKS.append(("after_return", status))


@shared_task(base=Hooked, name="test_execution.hooked", bind=True)
def hooked(self: Any, what: str = "") -> str:
    Effect.objects.create(name="hooked")
    if what == "fail":
        raise ValueError("no")
    if what == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0, exc=ValueError("again"))
    if what == "ignore":
        raise Ignore("as it wished")
    if what == "snooze" and Effect.objects.filter(name="hooked").count() < 2:
        raise self.snooze(0)
    if what == "exit":
        raise SystemExit(3)
    return "value"


@shared_task(base=Hooked, name="test_execution.outside", bind=True, atomic=False)
def outside_transaction(self: Any, what: str = "") -> bool:
    Effect.objects.create(name="outside")
    if what == "fail":
        raise ValueError("no")
    return connection.in_atomic_block


@shared_task(base=ReliableTask, name="test_execution.returns")
def returns(what: str) -> Any:
    Effect.objects.create(name="returned")
    return {"object": object(), "none": None, "nul": "a\u0000", "decimal": uuid.UUID(int=1), "big": "x" * 200_000}[what]


@shared_task(base=ReliableTask, name="test_execution.ignores_result", ignore_result=True)
def ignores_result() -> Any:
    return object()


@shared_task(base=ReliableTask, name="test_execution.wants", typing=True)
def wants(one: int, two: int) -> int:
    return one + two


@shared_task(base=ReliableTask, name="test_execution.raises")
def raises(text: str, times: int = 1) -> None:
    raise ValueError(text * times)


@shared_task(base=ReliableTask, name="test_execution.looks", bind=True)
def looks(self: Any) -> dict[str, Any]:
    request = self.request
    return {
        "id": request.id,
        "retries": request.retries,
        "key": self.idempotency_key,
        "redelivered": bool((request.delivery_info or {}).get("redelivered")),
        "eager": request.is_eager,
        "atomic": connection.in_atomic_block,
    }


def again(jobs: InProcess, result: Any, **pointer: Any) -> inprocess.Delivered:
    """The job's message once more."""
    return jobs.deliver(jobs.message(result, **pointer))


# --- signals and hooks ----------------------------------------------------------------------------------------------


def test_a_success_fires_celerys_signals_and_hooks_once(jobs: InProcess) -> None:
    job = jobs.run(hooked)
    assert (job.status, json.loads(job.result), job.failures, job.crashes) == ("succeeded", "value", 0, 0)
    assert jobs.last[0].signals == ["task_prerun", "task_success", "task_postrun"]
    assert HOOKS == [("on_success", "value"), ("after_return", "SUCCESS")]
    assert jobs.last[0].answer == "acked"
    assert jobs.effects("hooked") == 1
    assert not JobEvent.objects.exists()


def test_a_failure_fires_signals_and_hooks_once_and_is_undone(jobs: InProcess) -> None:
    job = jobs.run(hooked, "fail")
    assert (job.status, job.reason, job.failures) == ("failed", Reason.ERROR, 1)
    assert job.error == "ValueError: no"
    assert "raise ValueError" in job.traceback
    assert jobs.last[0].signals == ["task_prerun", "task_failure", "task_postrun"]
    assert HOOKS == [("on_failure", "ValueError('no')"), ("after_return", "FAILURE")]
    assert jobs.last[0].answer == "acked"
    assert jobs.effects("hooked") == 0
    assert jobs.kinds(job) == ["failure"]


def test_a_retry_fires_task_retry_and_the_next_run_task_success(jobs: InProcess) -> None:
    job = jobs.run(hooked, "retry")
    assert (job.status, job.reason, job.failures, job.sends) == ("waiting", Reason.ERROR, 1, 0)
    assert jobs.last[0].signals == ["task_prerun", "task_retry", "task_postrun"]
    assert HOOKS == [("on_retry", "ValueError('again')")]
    assert jobs.effects("hooked") == 0
    HOOKS.clear()
    (second,) = jobs.finish()
    assert second.signals == ["task_prerun", "task_success", "task_postrun"]
    assert HOOKS == [("on_success", "value"), ("after_return", "SUCCESS")]
    assert jobs.row(job).status == "succeeded"


@pytest.mark.parametrize("what", ["ignore", "snooze"])
def test_what_ends_by_its_own_wish_keeps_its_effects_and_fires_no_hook(jobs: InProcess, what: str) -> None:
    job = jobs.run(hooked, what)
    assert jobs.last[0].signals == ["task_prerun", "task_postrun"]
    assert [name for name, _ in HOOKS if name != "after_return"] == []
    assert jobs.effects("hooked") == 1
    assert job.status == ("succeeded" if what == "ignore" else "waiting")
    assert job.failures == 0


def test_a_body_that_exits_is_a_failure_and_the_worker_lives(jobs: InProcess) -> None:
    job = jobs.run(hooked, "exit")
    assert job.status == "failed"
    assert "sys.exit(3)" in job.error
    assert jobs.last[0].signals == ["task_prerun", "task_failure", "task_postrun"]
    assert jobs.run(hooked).status == "succeeded"


@pytest.mark.parametrize("what", ["", "fail"])
@pytest.mark.promise("I3")
def test_a_duplicate_of_a_settled_job_runs_nothing_and_fires_nothing(jobs: InProcess, what: str) -> None:
    job = jobs.run(hooked, what)
    before = jobs.row(job)
    HOOKS.clear()
    for pointer in ({}, {"send": 2}):
        for redelivered in (False, True):
            duplicate = jobs.deliver(jobs.message(job, redelivered=redelivered, **pointer))
            assert duplicate.signals == ["task_prerun", "task_postrun"]
            assert duplicate.answer == "acked"
    assert [name for name, _ in HOOKS if name != "after_return"] == []
    after = jobs.row(job)
    assert (after.epoch, after.finished_at, after.result) == (before.epoch, before.finished_at, before.result)
    assert jobs.effects("hooked") == (0 if what else 1)


# --- the result -----------------------------------------------------------------------------------------------------


def test_a_result_that_cannot_be_stored_fails_the_job(jobs: InProcess) -> None:
    job = jobs.run(returns, "object")
    assert job.status == "failed"
    assert "can't be stored as JSON" in job.error
    assert "ignore_result" in job.error
    assert jobs.effects("returned") == 0


@pytest.mark.parametrize("what", ["nul", "decimal", "big"])
def test_a_result_of_plain_data_is_kept(jobs: InProcess, what: str) -> None:
    result = returns.delay(what)
    jobs.work()
    assert jobs.row(result).status == "succeeded", jobs.row(result).error
    assert result.get(timeout=1) == {"nul": "a\u0000", "decimal": uuid.UUID(int=1), "big": "x" * 200_000}[what]


def test_nothing_returned_is_nothing_stored(jobs: InProcess) -> None:
    assert jobs.run(returns, "none").result is None


def test_an_ignored_result_is_not_stored_nor_looked_at(jobs: InProcess) -> None:
    job = jobs.run(ignores_result)
    assert (job.status, job.result) == ("succeeded", None)


@pytest.mark.parametrize("ignored", [True, False])
def test_ignore_result_of_the_call_outweighs_the_tasks(jobs: InProcess, ignored: bool) -> None:
    result = hooked.apply_async((), ignore_result=ignored)
    jobs.work()
    assert (jobs.row(result).result is None) == ignored


def test_the_call_may_ask_for_the_result_of_a_task_that_ignores_its_own(jobs: InProcess) -> None:
    result = looks.apply_async((), ignore_result=False)
    jobs.work()
    assert jobs.row(result).result is not None


def test_a_nul_in_an_error_is_written(jobs: InProcess) -> None:
    job = jobs.run(raises, "a\u0000b")
    assert job.status == "failed"
    assert "a\\x00b" in job.error


def test_a_megabyte_of_error_is_cut_in_the_middle(jobs: InProcess) -> None:
    job = jobs.run(raises, "start...end", 10**5)
    assert len(job.error) < 20_000
    assert job.error.startswith("ValueError: start")
    assert job.error.endswith("end")
    assert "characters left out" in job.error


def test_a_body_sees_its_job(jobs: InProcess) -> None:
    result = looks.delay()
    jobs.work()
    assert result.get(timeout=1) == {
        "id": result.id,
        "retries": 0,
        "key": result.id,
        "redelivered": False,
        "eager": False,
        "atomic": True,
    }


def test_a_non_atomic_body_has_no_transaction_around_it(jobs: InProcess) -> None:
    result = outside_transaction.delay()
    jobs.work()
    row = jobs.row(result)
    assert (row.status, row.token, row.lease_at, row.deadline_at, row.crashes) == ("succeeded", None, None, None, 0)
    assert result.get(timeout=1) is False


def test_a_non_atomic_bodys_effects_stay_though_it_fails(jobs: InProcess) -> None:
    job = jobs.run(outside_transaction, "fail")
    assert (job.status, job.crashes) == ("failed", 0)
    assert jobs.effects("outside") == 1
    assert [name for name, _ in HOOKS] == ["on_failure", "after_return"]


def test_times_and_worker_are_recorded(jobs: InProcess) -> None:
    row = jobs.run(hooked)
    assert row.created_at <= row.started_at <= row.finished_at
    assert f" pid {os.getpid()} #" in row.worker


# --- deliveries that get no claim -----------------------------------------------------------------------------------


def test_a_message_that_comes_before_its_time_runs_nothing(jobs: InProcess) -> None:
    result = hooked.apply_async((), countdown=60)
    assert again(jobs, result).answer == "acked"
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("waiting", 0)


@pytest.mark.parametrize("send", [1, 2])
def test_a_message_of_an_earlier_content_runs_nothing(jobs: InProcess, send: int) -> None:
    result = hooked.apply_async((), countdown=0)
    jobs.take()
    old = jobs.message(result, send=send)
    Job.objects.update(content_version=1)
    jobs.deliver(old)
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("waiting", 0)
    assert again(jobs, result, send=send).answer == "acked"
    assert jobs.row(result).status == "succeeded"


def test_a_message_that_names_a_database_which_this_worker_lacks_says_so(
    jobs: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    hooked.delay()
    (message,) = jobs.take()
    Job.objects.all().delete()
    message.headers[HEADER]["using"] = "archive"
    assert jobs.deliver(message).answer == "acked"
    assert "names the database 'archive', which this worker's DATABASES lack" in caplog.text


def test_a_message_whose_row_is_gone_is_dropped_with_a_warning(
    jobs: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    result = hooked.delay()
    (message,) = jobs.take()
    Job.objects.all().delete()
    assert jobs.deliver(message).answer == "acked"
    assert f"Job {result.id} has no row in 'default' any more" in caplog.text
    assert jobs.effects("hooked") == 0
    assert not Job.objects.exists()


def test_a_running_job_is_not_run_a_second_time(jobs: InProcess) -> None:
    result = hooked.delay()
    (message,) = jobs.take()
    Job.objects.update(
        status="running", token=uuid.uuid4(), lease_at=timezone.now() + datetime.timedelta(seconds=60), crashes=1
    )
    jobs.deliver(message)
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("running", 0)


def test_a_duplicate_brings_the_result_backend_in_line(jobs: InProcess) -> None:
    result = hooked.delay()
    jobs.work()
    TaskResult.objects.all().delete()  # as if the worker had died between its commit and the store
    again(jobs, result)
    stored = TaskResult.objects.get(task_id=result.id)
    assert (stored.status, json.loads(stored.result)) == ("SUCCESS", "value")


# --- a committed claim -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pointer", [{"send": 2}, {"send": 1, "redelivered": True}])
def test_a_careful_run_counts_itself_and_gives_its_crash_back(jobs: InProcess, pointer: dict[str, Any]) -> None:
    redelivered = pointer.pop("redelivered", False)
    result = looks.delay()
    jobs.take()
    jobs.deliver(jobs.message(result, redelivered=redelivered, **pointer))
    row = jobs.row(result)
    assert (row.status, row.crashes, row.token, row.lease_at) == ("succeeded", 0, None, None)
    assert row.epoch == 2


def test_a_job_that_crashed_before_takes_the_careful_path_by_itself(jobs: InProcess) -> None:
    result = looks.delay()
    Job.objects.update(crashes=1)
    jobs.work()
    row = jobs.row(result)
    assert (row.status, row.crashes, row.epoch) == ("succeeded", 1, 2)


@pytest.mark.promise("I6")
def test_a_job_that_crashed_too_often_is_failed_once_without_a_run(jobs: InProcess) -> None:
    result = hooked.delay()
    Job.objects.update(crashes=3)
    with override_settings(RELIABLE_JOBS={"MAX_CRASHES": 3}):
        (delivered,) = jobs.work()
    row = jobs.row(result)
    assert (row.status, row.reason) == ("failed", Reason.CRASH)
    assert "3 starts never reported" in row.error
    assert delivered.signals == ["task_prerun", "task_failure", "task_postrun"]
    assert [name for name, _ in HOOKS] == ["on_failure", "after_return"]
    assert jobs.effects("hooked") == 0
    assert jobs.kinds(row) == ["crash"]


def test_a_condemned_job_says_what_its_worker_saw_last(jobs: InProcess) -> None:
    result = hooked.delay()
    Job.objects.update(crashes=3)
    JobEvent.objects.create(job_id=result.id, kind="time limit", detail="hard time limit of 5 s exceeded")
    jobs.work()
    row = jobs.row(result)
    assert (row.reason, "hard time limit of 5 s exceeded" in row.error) == (Reason.TIME_LIMIT, True)


def test_a_requeue_forgives_the_crashes(jobs: InProcess) -> None:
    from reliable_jobs import lifecycle

    result = hooked.delay()
    Job.objects.update(crashes=3)
    jobs.work()
    lifecycle.requeue([uuid.UUID(result.id)], "default", actor="ann")
    jobs.finish()
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("succeeded", 1)


# --- expiry ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I7")
@pytest.mark.parametrize("send", [1, 2])
def test_an_expired_job_ends_so_without_a_run_and_is_heard_of(jobs: InProcess, send: int) -> None:
    result = hooked.apply_async((), expires=60)
    jobs.take()
    message = jobs.message(result, send=send)
    Job.objects.update(expires_at=timezone.now() - datetime.timedelta(seconds=1))
    delivered = jobs.deliver(message)
    row = jobs.row(result)
    assert (row.status, jobs.effects("hooked"), jobs.kinds(row)) == ("expired", 0, ["expiry"])
    assert "expired at" in row.error
    assert delivered.signals == ["task_prerun", "task_failure", "task_postrun"]
    assert result.state == "REVOKED"


def test_a_job_that_has_not_expired_runs(jobs: InProcess) -> None:
    result = hooked.apply_async((), expires=60)
    jobs.work()
    assert jobs.row(result).status == "succeeded"


# --- code that does not fit -----------------------------------------------------------------------------------------


@pytest.fixture
def misfit(jobs: InProcess) -> Iterator[Any]:
    """A job that was enqueued by newer code, with an argument too many."""
    result = wants.delay(1, 2)
    jobs.take()
    Job.objects.update(payload=b'[[1, 2, 3], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]')
    return result


@pytest.mark.promise("I7")
def test_arguments_that_do_not_fit_hand_the_job_back_and_then_park_it(jobs: InProcess, misfit: Any) -> None:
    delivered = again(jobs, misfit)
    row = jobs.row(misfit)
    assert (row.status, row.reason, row.failures, row.sends) == ("waiting", Reason.PARKED, 0, 0)
    assert "can't take the job's arguments" in row.error
    assert row.due_at > timezone.now()
    assert row.started_at is None
    assert delivered.signals == ["task_prerun", "task_postrun"]
    assert jobs.kinds(row) == ["parked"]

    Job.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))
    again(jobs, misfit)
    assert jobs.row(misfit).status == "waiting"
    assert jobs.kinds(row) == ["parked"], "handing back again is no news"

    long_ago = timezone.now() - datetime.timedelta(seconds=1)
    Job.objects.update(due_at=long_ago, deadline_at=long_ago)
    delivered = again(jobs, misfit)
    row = jobs.row(misfit)
    assert (row.status, row.reason) == ("failed", Reason.PARKED)
    assert delivered.signals == ["task_prerun", "task_failure", "task_postrun"]


def test_a_job_that_was_handed_back_runs_once_its_code_is_there(jobs: InProcess, misfit: Any) -> None:
    again(jobs, misfit)
    Job.objects.update(
        payload=b'[[1, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
        due_at=timezone.now() - datetime.timedelta(seconds=1),
    )
    again(jobs, misfit)
    row = jobs.row(misfit)
    assert (row.status, row.error, row.deadline_at) == ("succeeded", "", None)


@pytest.mark.parametrize("send", [1, 2])
def test_a_misfit_on_the_careful_path_is_no_crash(jobs: InProcess, misfit: Any, send: int) -> None:
    again(jobs, misfit, send=send)
    assert (jobs.row(misfit).status, jobs.row(misfit).crashes) == ("waiting", 0)


# --- traps of atomic bodies -----------------------------------------------------------------------------------------


def test_a_body_that_swallows_an_integrity_error_keeps_what_sqlite_kept(jobs: InProcess) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("SQLite only")
    assert jobs.run(tasks.swallows_integrity_error, "one").status in ("succeeded", "failed")


@pytest.mark.servers
def test_a_body_that_swallows_an_integrity_error_fails_with_advice(stack: Stack, idle_queue: str) -> None:
    jobs = InProcess(idle_queue)
    result = tasks.swallows_integrity_error.delay("one")
    (delivered,) = jobs.work()
    row = jobs.row(result)
    assert row.status == "failed"
    assert "savepoint" in row.error
    assert "atomic = False" in row.error
    assert stack.effects("one") == 0
    assert delivered.signals == ["task_prerun", "task_failure", "task_postrun"]


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_a_deferred_constraint_fails_the_body_and_not_the_settlement(stack: Stack, idle_queue: str) -> None:
    jobs = InProcess(idle_queue)
    result = tasks.breaks_deferred.delay("deferred")
    jobs.work()
    row = jobs.row(result)
    assert (row.status, row.reason, row.failures) == ("failed", Reason.ERROR, 1)
    assert "IntegrityError" in row.error
    assert stack.effects("deferred") == 0


@pytest.mark.servers
def test_a_body_that_commits_by_hand_is_told_so(stack: Stack, idle_queue: str) -> None:
    jobs = InProcess(idle_queue)
    result = tasks.commits_by_hand.delay("committed")
    jobs.work()
    row = jobs.row(result)
    assert row.status == "failed"
    assert "atomic = False" in row.error
    # The connection was left in a state of the body's making; the next job must not notice.
    assert jobs.run(tasks.effect, "next").status == "succeeded"


@shared_task(base=ReliableTask, name="test_execution.durable")
def durable() -> None:
    with transaction.atomic(durable=True):
        pass


def test_a_durable_block_in_an_atomic_body_is_told_what_to_do(jobs: InProcess) -> None:
    job = jobs.run(durable)
    assert job.status == "failed"
    assert "self.fenced()" in job.error


@shared_task(base=ReliableTask, name="test_execution.hook_raises")
def hook_raises() -> str:
    def broken() -> None:
        raise ValueError("after the commit")

    Effect.objects.create(name="hook_raises")
    transaction.on_commit(broken)
    return "done"


@pytest.mark.promise("I3")
@pytest.mark.parametrize("send", [1, 2])
def test_an_error_in_a_hook_after_the_commit_does_not_undo_the_settlement(jobs: InProcess, send: int) -> None:
    result = hook_raises.delay()
    jobs.take()
    delivered = jobs.deliver(jobs.message(result, send=send))
    row = jobs.row(result)
    assert (row.status, row.failures, json.loads(row.result)) == ("succeeded", 0, "done")
    assert jobs.effects("hook_raises") == 1
    assert delivered.signals == ["task_prerun", "task_success", "task_postrun"]


# --- follow-ups -----------------------------------------------------------------------------------------------------


@pytest.mark.promise("I3")
def test_a_job_enqueued_in_a_run_comes_with_its_settlement_or_not_at_all(jobs: InProcess) -> None:
    jobs.run(tasks.enqueues, "good")
    jobs.run(tasks.enqueues, "bad", fail=True)
    jobs.finish()
    assert (jobs.effects("good"), jobs.effects("bad")) == (1, 0)
    assert Job.objects.filter(task=tasks.effect.name).count() == 1


def test_the_parts_of_a_chain_follow_one_another_with_their_family(jobs: InProcess) -> None:
    result = (tasks.add.s(1, 2) | tasks.add.s(10) | tasks.add.s(100)).apply_async()
    jobs.finish()
    assert result.get(timeout=1) == 113
    first, second, third = Job.objects.order_by("created_at")
    assert {row.root_id for row in (first, second, third)} == {first.pk}
    assert (second.parent_id, third.parent_id) == (first.pk, second.pk)


def test_callbacks_run_and_an_error_stops_the_chain(jobs: InProcess) -> None:
    (tasks.add.s(1, 2).set(link=tasks.effect.si("callback")) | tasks.effect.si("next")).apply_async()
    (raises.si("no") | tasks.effect.si("never")).apply_async()
    jobs.finish()
    assert (jobs.effects("callback"), jobs.effects("next"), jobs.effects("never")) == (1, 1, 0)


def test_a_copy_of_a_chains_first_part_does_not_start_the_second_again(jobs: InProcess) -> None:
    (tasks.effect.si("first") | tasks.effect.si("second")).apply_async()
    (message,) = jobs.take()
    for _ in range(3):
        jobs.deliver(message)
    jobs.finish()
    assert (jobs.effects("first"), jobs.effects("second"), Job.objects.count()) == (1, 1, 2)


# --- messages from elsewhere ----------------------------------------------------------------------------------------


def test_a_message_from_elsewhere_gets_a_receipt_and_runs_once(jobs: InProcess) -> None:
    message = jobs.foreign(tasks.effect.name, ["foreign"])
    for _ in range(3):
        assert jobs.deliver(message).answer == "acked"
    row = Job.objects.get()
    assert (str(row.pk), row.status, row.task) == (message.headers["id"], "succeeded", tasks.effect.name)
    assert jobs.effects("foreign") == 1


def test_a_message_from_elsewhere_with_an_id_that_is_no_uuid_runs_once(jobs: InProcess) -> None:
    message = jobs.foreign(tasks.effect.name, ["odd id"], id="order-5")
    for _ in range(2):
        assert jobs.deliver(message).answer == "acked"
    assert (Job.objects.get().status, jobs.effects("odd id")) == ("succeeded", 1)


def test_a_foreign_message_that_fails_is_recorded_and_can_be_requeued(jobs: InProcess) -> None:
    from reliable_jobs import lifecycle

    message = jobs.foreign(tasks.fails.name, ["foreign"], argsrepr="('foreign',)", x_unknown={"a": [1]})
    jobs.deliver(message)
    row = Job.objects.get()
    assert (row.status, row.error) == ("failed", "ValueError: no foreign")
    lifecycle.requeue([row.pk], "default", actor="ann")
    jobs.sweep()
    # The requeued message goes to the queue that it came from.
    (sent,) = jobs.take(row.queue)
    jobs.deliver(sent)
    assert jobs.row(row).failures == 1


FORGED: list[dict[str, Any]] = [
    {HEADER: None},
    {HEADER: "1"},
    {HEADER: []},
    {HEADER: {}},
    {HEADER: {"content_version": "x", "using": "default", "send": 1}},
    {HEADER: {"content_version": None, "using": None, "send": None}},
    {HEADER: {"content_version": 0, "using": "nowhere", "send": 1}},
    {HEADER: {"content_version": 0, "using": {"a": 1}, "send": []}},
    {HEADER: {"content_version": 2**70, "using": "default", "send": -5}},
    {HEADER: {"content_version": 1.5, "using": "default", "send": 1.5}},
    {HEADER: {"content_version": True, "using": "default", "send": True}},
    {"root_id": "x", "parent_id": 5},
    {"timelimit": [None, None], "argsrepr": 5, "kwargsrepr": ["x"]},
    {"retries": 100},
    {"group": "no uuid", "shadow": 5, "origin": None},
    {"reply_to": "someone", "correlation_id": 7},
    {"stamps": {"a": ["b"]}, "stamped_headers": ["a"]},
]


@pytest.mark.parametrize("headers", FORGED, ids=repr)
@pytest.mark.promise("I7")
def test_forged_headers_neither_crash_the_worker_nor_run_anything_twice(
    jobs: InProcess, headers: dict[str, Any]
) -> None:
    message = jobs.foreign(tasks.effect.name, ["forged"], **headers)
    for _ in range(2):
        delivered = jobs.deliver(message)
        assert delivered.answer == "acked"
        assert "task_internal_error" not in delivered.signals
    assert jobs.effects("forged") <= 1
    assert jobs.run(tasks.effect, "next").status == "succeeded"


@pytest.mark.parametrize("priority", [10, 255, 2**40, "high"], ids=repr)
def test_a_message_from_elsewhere_with_an_odd_priority_is_not_lost(jobs: InProcess, priority: Any) -> None:
    message = jobs.foreign(tasks.effect.name, ["odd"])
    message.properties["priority"] = priority
    assert jobs.deliver(message).answer == "acked"
    assert jobs.effects("odd") == 1


@pytest.mark.parametrize("content_version", [-1, 1, 2**40, "0", None, 0.0])
def test_a_pointer_with_another_rev_than_the_rows_runs_nothing(jobs: InProcess, content_version: Any) -> None:
    result = hooked.delay()
    jobs.take()
    again(jobs, result, content_version=content_version)
    assert (jobs.row(result).status, jobs.effects("hooked")) == ("waiting", 0)
