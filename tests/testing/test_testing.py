"""reliable_jobs.testing, as the suites of applications use it: no broker, in every kind of test case."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import shared_task, signals
from celery.backends.base import BaseBackend
from django.db import transaction
from django.test import TestCase, TransactionTestCase

from reliable_jobs import ReliableTask, RetriedTask
from reliable_jobs.dispatch.publisher import Publisher
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.testing import assert_enqueued, enqueued_jobs, override_dispatch, run_jobs
from tests.celery_app import app
from tests.testapp.models import Child, Effect, Parent
from tests.testapp.tasks import add, breaks_deferred, effect, enqueues, fails, fails_first, slow_outside, snoozes

HEARD: list[tuple[str, Any]] = []


@pytest.fixture(autouse=True)
def no_publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every publish of the process is caught here; the tests that may have one say so."""
    published: list[Any] = []

    def caught(self: Publisher, messages: Any, timeout: float | None = None) -> Any:
        published.extend(messages)
        raise AssertionError("a broker would have been touched")

    monkeypatch.setattr(Publisher, "publish", caught)
    HEARD.clear()
    yield published
    assert not published


class Listens(ReliableTask):
    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        HEARD.append(("on_success", retval))

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HEARD.append(("on_failure", repr(exc)))

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HEARD.append(("on_retry", repr(exc)))


@shared_task(base=Listens, bind=True, max_retries=1)
def listens(self: Any, mood: str) -> str:
    if mood == "bad":
        raise ValueError("bad")
    if mood == "later" and not self.request.retries:
        raise self.retry(countdown=0, exc=ValueError("later"))
    return mood


@shared_task(base=ReliableTask)
def hooks(name: str, fail: bool = False) -> None:
    transaction.on_commit(lambda: HEARD.append(("hook", name)))
    transaction.on_commit(lambda: effect.delay(f"{name} from the hook"))
    if fail:
        raise ValueError(name)


@shared_task(base=RetriedTask, max_retries=None, retry_window=3600.0)
def never_works() -> None:
    raise OSError("still down")


@shared_task(base=ReliableTask)
def for_ever() -> None:
    for_ever.delay()


def effects() -> list[str]:
    return list(Effect.objects.order_by("pk").values_list("name", flat=True))


# --- what was enqueued ------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@override_dispatch()
def test_arguments_match_however_they_were_passed() -> None:
    effect.delay("a", value="1")
    assert_enqueued(effect, args=["a", "1"], count=1)
    assert_enqueued(effect, kwargs={"name": "a", "value": "1"}, count=1)
    assert_enqueued(effect.name, args=["a"], kwargs={"value": "1"}, count=1)
    assert_enqueued(effect, args=["a"], count=0)
    assert_enqueued(effect, args=["b", "1"], count=0)
    assert_enqueued(add, count=0)


@pytest.mark.django_db
@override_dispatch()
def test_values_are_compared_as_json_brings_them_over() -> None:
    number = uuid.uuid4()
    add.delay((1, 2), number)
    assert_enqueued(add, args=[(1, 2), number], count=1)
    assert enqueued_jobs(add)[0].args == [[1, 2], number]


@pytest.mark.django_db
@override_dispatch()
def test_queue_and_key_narrow_the_match() -> None:
    effect.apply_async(("a",), key="order-1", queue="mail")
    effect.apply_async(("a",))
    assert len(assert_enqueued(effect, args=["a"], count=2)) == 2
    (job,) = assert_enqueued(effect, queue="mail", key="order-1")
    assert (job.queue, job.key, job.status) == ("mail", "order-1", "waiting")
    with pytest.raises(AssertionError):
        assert_enqueued(effect, key="order-2")


@pytest.mark.django_db
@override_dispatch()
def test_a_failed_assertion_lists_what_was_enqueued() -> None:
    effect.delay("this one")
    with pytest.raises(AssertionError, match=r"at least 1 job of .*add with args=\[1, 2\], found 0(.|\n)*'this one'"):
        assert_enqueued(add, args=[1, 2])
    with pytest.raises(AssertionError, match="Expected 2 job"):
        assert_enqueued(effect, count=2)
    with pytest.raises(AssertionError, match="Expected 0 job"):
        assert_enqueued(effect, count=0)


@pytest.mark.django_db
@override_dispatch()
def test_a_rolled_back_enqueue_was_not_enqueued() -> None:
    with transaction.atomic():
        effect.delay("gone")
        transaction.set_rollback(True)
    assert_enqueued(effect, count=0)


@pytest.mark.django_db
def test_eager_calls_run_at_once_without_a_row_and_the_assertion_says_so() -> None:
    app.conf.task_always_eager = True
    try:
        assert effect.delay("eager").get() == "eager"
        assert effects() == ["eager"]
        assert not Job.objects.exists()
        assert len(run_jobs()) == 0
        with pytest.raises(AssertionError, match="CELERY_TASK_ALWAYS_EAGER is on"):
            assert_enqueued(effect)
    finally:
        app.conf.task_always_eager = False


# --- run it -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@override_dispatch()
def test_jobs_run_in_order_with_results_rows_and_hooks_as_in_a_worker() -> None:
    result = listens.delay("good")
    effect.delay("second")
    report = run_jobs()
    assert [run.task for run in report.runs] == [listens.name, effect.name]
    assert [run.value for run in report.succeeded] == ["good", "second"]
    assert (result.state, result.get(timeout=5)) == ("SUCCESS", "good")
    assert HEARD == [("on_success", "good")]
    job = Job.objects.get(task=listens.name)
    assert (job.status, job.worker.split(" pid ")[0]) == ("succeeded", "reliable_jobs.testing")
    assert len(run_jobs()) == 0


@pytest.mark.django_db
@override_dispatch()
def test_a_failure_is_settled_and_undone_and_raised_only_when_asked() -> None:
    fails.delay("x")
    report = run_jobs()
    assert [(run.state, str(run.error)) for run in report.failed] == [("FAILURE", "no x")]
    assert effects() == []
    assert Job.objects.get().status == "failed"
    fails.delay("y")
    effect.delay("not reached")
    with pytest.raises(ValueError, match="no y"):
        run_jobs(raise_errors=True)
    assert effects() == []
    assert_enqueued(effect, count=1)


@pytest.mark.django_db
@override_dispatch()
def test_signals_fire_once_per_run_and_hooks_hear_of_failures_and_retries() -> None:
    heard: list[str] = []

    def on_failure(sender: Any, **kwargs: Any) -> None:
        heard.append(sender.name)

    signals.task_failure.connect(on_failure)
    try:
        listens.delay("bad")
        listens.delay("later")
        run_jobs()
    finally:
        signals.task_failure.disconnect(on_failure)
    assert heard == [listens.name]
    assert [name for name, _ in HEARD] == ["on_failure", "on_retry", "on_success"]


@pytest.mark.django_db
@override_dispatch()
def test_a_retry_that_is_due_runs_in_the_same_call() -> None:
    fails_first.delay("x", 2)
    report = run_jobs(raise_errors=True)
    assert [(run.state, run.status) for run in report.runs] == [
        ("RETRY", "waiting"),
        ("RETRY", "waiting"),
        ("SUCCESS", "succeeded"),
    ]
    assert len(report.again) == 2
    assert effects() == ["x-undone", "x"]  # of the last run; the first two were undone


@pytest.mark.django_db
@override_dispatch()
def test_what_is_not_due_waits_until_time_is_advanced() -> None:
    effect.apply_async(("later",), countdown=3600)
    fails_first.delay("retried", 2, countdown=600)
    assert [run.state for run in run_jobs().runs] == ["RETRY"]
    assert len(run_jobs(advance=599)) == 0
    assert [run.state for run in run_jobs(advance=datetime.timedelta(minutes=11)).runs] == ["RETRY"]
    assert [run.state for run in run_jobs(advance=3000).runs] == ["SUCCESS", "SUCCESS"]
    assert effects() == ["retried-undone", "retried", "later"]


@pytest.mark.django_db
@override_dispatch()
def test_a_retry_window_of_an_hour_is_over_in_no_time() -> None:
    never_works.delay()
    report = run_jobs(advance=7200)
    assert len(report.again) > 3
    assert [str(run.error) for run in report.failed] == ["still down"]
    assert Job.objects.get().status == "failed"


@pytest.mark.django_db
@override_dispatch()
def test_expiry_is_seen_when_time_passes() -> None:
    effect.apply_async(("late",), countdown=60, expires=30)
    report = run_jobs(advance=61)
    assert [run.status for run in report.failed] == ["expired"]
    assert effects() == []


@pytest.mark.django_db
@override_dispatch()
def test_jobs_of_jobs_run_too_unless_only_what_is_there_is_wanted() -> None:
    enqueues.delay("child")
    assert [run.task for run in run_jobs(until_empty=False).runs] == [enqueues.name]
    assert effects() == []
    enqueues.delay("second child")
    assert len(run_jobs()) == 3
    assert sorted(effects()) == ["child", "second child"]
    enqueues.delay("undone", fail=True)
    run_jobs()
    assert "undone" not in effects()


@pytest.mark.django_db
@override_dispatch()
def test_callbacks_and_chains_of_reliable_tasks_run_as_jobs() -> None:
    (add.s(1, 2) | effect.s()).apply_async(link=None)
    add.apply_async((3, 4), link=effect.s("linked"))
    assert {run.task for run in run_jobs(raise_errors=True).runs} == {add.name, effect.name}
    assert sorted(effects()) == ["3", "7"]


@pytest.mark.django_db
@override_dispatch()
def test_snoozed_and_non_atomic_bodies_run_as_in_a_worker(tmp_path: Any) -> None:
    snoozes.delay("piece", 3)
    gate = tmp_path / "gate"
    gate.touch()
    slow_outside.delay("outside", str(tmp_path / "log"), str(gate))
    report = run_jobs(raise_errors=True)
    assert [run.state for run in report.runs].count("IGNORED") == 2
    assert sorted(effects()) == ["outside", "piece", "piece", "piece"]


@pytest.mark.django_db
@override_dispatch()
def test_jobs_that_enqueue_each_other_for_ever_are_stopped() -> None:
    for_ever.delay()
    with pytest.raises(RuntimeError, match="stopped after 25 runs"):
        run_jobs(limit=25)
    assert Job.objects.filter(status="succeeded").count() == 25


@pytest.mark.django_db
@override_dispatch()
def test_a_job_whose_task_is_unknown_is_an_error_that_names_it() -> None:
    effect.delay("x")
    Job.objects.update(task="shop.tasks.gone")
    with pytest.raises(Exception, match=r"shop\.tasks\.gone"):
        run_jobs()


@pytest.mark.django_db(transaction=True)
@override_dispatch()
def test_a_broken_deferred_constraint_is_the_failure_of_its_job() -> None:
    breaks_deferred.delay("x")
    effect.delay("y")
    report = run_jobs()
    assert [(run.task, run.status) for run in report.runs] == [
        (breaks_deferred.name, "failed"),
        (effect.name, "succeeded"),
    ]
    assert effects() == ["y"]


@pytest.mark.django_db
def test_results_need_no_backend_across_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class AcrossTheNetwork(BaseBackend):
        def store_result(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("the network would have been touched")

    task = app.tasks[add.name]
    backend = AcrossTheNetwork(app)
    monkeypatch.setattr(task, "_backend", backend, raising=False)
    with override_dispatch():
        add.delay(1, 2)
        assert [run.value for run in run_jobs(raise_errors=True).runs] == [3]
    assert Job.objects.get().result == "3"
    assert task.backend.wrapped is backend


class InTestCase(TestCase):
    """Django's TestCase: everything in a transaction that never commits."""

    def test_without_any_setting_rows_are_run_and_nothing_is_published(self) -> None:
        effect.delay("a")
        assert_enqueued(effect, args=["a"], count=1)
        assert len(run_jobs(raise_errors=True)) == 1
        assert effects() == ["a"]

    def test_with_captured_callbacks_and_no_dispatch(self) -> None:
        with override_dispatch(), self.captureOnCommitCallbacks(execute=True):
            effect.delay("a")
        run_jobs(raise_errors=True)
        assert effects() == ["a"]

    def test_a_bodys_own_hooks_run_once_also_when_the_test_captures_them(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            hooks.apply_async(("captured",), countdown=-1)
            Job.objects.update(sends=0)
            with override_dispatch():
                run_jobs(raise_errors=True)
                assert HEARD == [("hook", "captured")]
            # This test's own dispatch would follow; it is not what is looked at.
            transaction.get_connection().run_on_commit.clear()
        assert HEARD == [("hook", "captured")]
        assert effects() == ["captured from the hook"]

    def test_hooks_of_a_failed_body_do_not_run(self) -> None:
        hooks.delay("failed", fail=True)
        report = run_jobs()
        assert (len(report.failed), HEARD, effects()) == (1, [], [])

    def test_deferred_constraints_of_the_test_stay_deferred_after_a_run(self) -> None:
        effect.delay("a")
        run_jobs(raise_errors=True)
        Child.objects.create(parent_id=4711)
        Parent.objects.create(pk=4711, name="late")

    def test_the_next_test_starts_empty_one(self) -> None:
        assert Job.objects.count() == 0
        effect.delay("left behind")

    def test_the_next_test_starts_empty_two(self) -> None:
        assert Job.objects.count() == 0
        effect.delay("left behind")


@override_dispatch()
class InTransactionTestCase(TransactionTestCase):
    """Real commits; the decorator holds for the class."""

    def test_enqueue_commit_and_run_without_a_broker(self) -> None:
        with transaction.atomic():
            enqueues.delay("child")
        assert len(run_jobs(raise_errors=True)) == 2
        assert effects() == ["child"]

    def test_failures_leave_their_history(self) -> None:
        failed = fails.delay("x")
        run_jobs()
        assert JobEvent.objects.get(job_id=failed.id).kind == "failure"

    def test_hooks_run_by_the_commit_itself(self) -> None:
        hooks.delay("committed")
        run_jobs(raise_errors=True)
        assert HEARD == [("hook", "committed")]
        assert effects() == ["committed from the hook"]


@pytest.mark.django_db(transaction=True)
def test_transactional_db_of_pytest_django(settings: Any) -> None:
    settings.RELIABLE_JOBS = {**settings.RELIABLE_JOBS, "DISPATCH": "relay"}
    effect.delay("a")
    run_jobs(raise_errors=True)
    assert effects() == ["a"]


def test_dispatch_can_be_switched_on_for_a_part(settings: Any) -> None:
    from reliable_jobs.conf import settings as ours

    with override_dispatch(GRACE=3.0):
        assert (ours.DISPATCH, ours.GRACE) == ("relay", 3.0)
        with override_dispatch("on_commit"):
            assert (ours.DISPATCH, ours.GRACE) == ("on_commit", 3.0)
