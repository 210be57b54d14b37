"""LedgerBackend as the configured result backend: alone, and around another one."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Task, shared_task
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, ImproperlyConfigured, NotRegistered, TimeoutError
from celery.result import GroupResult
from django.db import connection, transaction
from django_celery_results.models import TaskResult

from reliable_jobs import ReliableTask, lifecycle
from reliable_jobs.errors import NotCommitted
from reliable_jobs.models import Job
from reliable_jobs.results import LedgerBackend, copies, waiting
from tests.celery_app import app
from tests.support import inprocess
from tests.support.backends import LEDGER, use_backend
from tests.support.harness import PATIENCE, wait_until
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs = inprocess.jobs


@shared_task(name="test_ledger_backend.plain")
def plain() -> str:
    return "plain"


@pytest.fixture
def configure() -> Iterator[Callable[[str | None], LedgerBackend]]:
    """Have the app configured with another result backend."""
    before = app.conf.result_backend
    yield use_backend
    use_backend(before)


@pytest.mark.parametrize(
    ("url", "wrapped", "implicit"),
    [
        (LEDGER, "DisabledBackend", False),
        (f"{LEDGER}+django-db://", "DatabaseBackend", False),
        (f"{LEDGER}+redis://localhost/9", "RedisBackend", False),
        ("django-db", "DatabaseBackend", True),
        (None, "DisabledBackend", True),
    ],
)
def test_every_configuration_gives_a_ledger(configure: Any, url: str | None, wrapped: str, implicit: bool) -> None:
    backend = configure(url)
    assert isinstance(backend, LedgerBackend)
    assert (type(backend.wrapped).__name__, backend.implicit) == (wrapped, implicit)
    assert tasks.effect.backend is backend, "a reliable task's and the app's are the same"
    copied = pickle.loads(pickle.dumps(backend))
    assert (type(copied), type(copied.wrapped).__name__) == (LedgerBackend, wrapped)
    assert backend.as_uri().startswith(LEDGER[:21])


@pytest.mark.parametrize("url", [LEDGER, f"{LEDGER}+django-db://", "django-db", None])
def test_results_are_read_with_each(jobs: InProcess, configure: Any, url: str | None) -> None:
    configure(url)
    done, failed = tasks.effect.delay("x"), tasks.out_of_stock.delay("tea")
    jobs.work()
    for reader in (tasks.effect.AsyncResult, app.AsyncResult):
        assert reader(done.id).get(timeout=1) == "x"
        with pytest.raises(tasks.OutOfStock):
            reader(failed.id).get(timeout=1)
    kept = TaskResult.objects.filter(task_id__in=[done.id, failed.id])
    # Where it is around another one by its own name, results are not written twice.
    assert dict(kept.values_list("task_id", "status")) == (
        {done.id: "SUCCESS", failed.id: "FAILURE"} if url == "django-db" else {}
    )


@pytest.mark.parametrize("url", [f"{LEDGER}+django-db://", "django-db"])
def test_a_plain_task_keeps_its_backend(jobs: InProcess, configure: Any, url: str) -> None:
    configure(url)
    result = plain.delay()
    jobs.work()
    assert TaskResult.objects.get(task_id=result.id).status == "SUCCESS"
    assert app.AsyncResult(result.id).get(timeout=1) == "plain"
    mixed = GroupResult("g", [app.AsyncResult(result.id), app.AsyncResult(tasks.effect.delay("x").id)], app=app)
    jobs.work()
    assert mixed.get(timeout=1) == ["plain", "x"]
    result.forget()
    assert app.AsyncResult(result.id).state == "PENDING"


def test_a_tasks_own_backend_is_wrapped(jobs: InProcess) -> None:
    class Own(DisabledBackend):
        stored: list[Any] = []

        def store_result(self, *args: Any, **kwargs: Any) -> None:
            self.stored.append(args[:3])

    @app.task(base=ReliableTask, name="test_ledger_backend.own", backend=Own(app))
    def own() -> int:
        return 7

    try:
        assert isinstance(own.backend, LedgerBackend)
        assert isinstance(own.backend.wrapped, Own)
        assert own.backend is own.backend
        result = own.delay()
        jobs.work()
        assert own.AsyncResult(result.id).get(timeout=1) == 7
    finally:
        app.tasks.pop(own.name)


@pytest.mark.parametrize("url", [LEDGER, f"{LEDGER}+django-db://"])
def test_groups_are_saved_restored_and_deleted(jobs: InProcess, configure: Any, url: str) -> None:
    configure(url)
    group = GroupResult("a-group", [tasks.effect.delay("x"), tasks.effect.delay("y")], app=app)
    group.save()
    group.save()
    jobs.work()
    restored = app.GroupResult.restore("a-group")
    assert restored.get(timeout=1) == ["x", "y"]
    restored.delete()
    assert app.GroupResult.restore("a-group") is None


def test_get_looks_soon_and_then_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(waiting.time, "sleep", sleep)
    pause = waiting.Pauses(30.0, 0.5, None)
    with pytest.raises(TimeoutError):
        for _ in range(10_000):
            pause()
    assert slept[:3] == pytest.approx([0.002, 0.003, 0.0045])
    assert max(slept) == 0.5
    assert sum(slept) == pytest.approx(30.0)
    assert len([one for one in slept if one < 0.05]) < 80, "a long wait costs few looks"


def test_an_uncommitted_id_is_refused_by_every_reader(jobs: InProcess) -> None:
    with transaction.atomic():
        result = tasks.effect.delay("x")
        for wait in (
            app.AsyncResult(result.id).get,
            GroupResult("g", [app.AsyncResult(result.id)], app=app).get,
        ):
            with pytest.raises(NotCommitted):
                wait(timeout=60)


# --- another backend is brought in line (C14) -------------------------------------------------------------------------


def copied(task_id: Any) -> tuple[str, str | None] | None:
    return TaskResult.objects.filter(task_id=task_id).values_list("status", "task_name").first()


def test_c14_a_requeued_job_is_not_failed_there(jobs: InProcess) -> None:
    result = tasks.fails.delay("x")
    jobs.work()
    assert copied(result.id) == ("FAILURE", "tests.testapp.tasks.fails")
    lifecycle.requeue([jobs.row(result).pk], "default", actor="ann")
    assert copied(result.id) == ("PENDING", "tests.testapp.tasks.fails")


def test_c14_a_cancelled_job_is_revoked_there(jobs: InProcess) -> None:
    result = tasks.effect.apply_async(("x",), countdown=60)
    result.revoke()
    assert copied(result.id) == ("REVOKED", "tests.testapp.tasks.effect")


def test_c14_a_rescued_job_is_pending_there(jobs: InProcess) -> None:
    result = tasks.effect.delay("x")
    row = jobs.row(result)
    lifecycle.claim_committed(row.pk, 0, "default", worker="gone", lease=-1)
    app.backend.copy(result.id, {"status": "STARTED", "result": None, "traceback": None}, None)
    lifecycle.rescue("default", 10, after_restart=True)
    assert copied(result.id)[0] == "PENDING"


def settled_meanwhile(jobs: InProcess, result: Any, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a state is written to the other backend, another process runs the job to its end and writes the end."""
    store, left = LedgerBackend.store_copy, [state]

    def late(backend: LedgerBackend, task_id: str, value: Any, told: str, *more: Any) -> None:
        if told in left:
            left.remove(told)
            jobs.work()
            assert copied(result.id)[0] == "SUCCESS"
        store(backend, task_id, value, told, *more)

    monkeypatch.setattr(LedgerBackend, "store_copy", late)


def test_c14_a_late_copy_of_a_sweep_does_not_hide_the_end(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tasks.effect.delay("x")
    lifecycle.claim_committed(jobs.row(result).pk, 0, "default", worker="gone", lease=-1)
    settled_meanwhile(jobs, result, "PENDING", monkeypatch)
    lifecycle.rescue("default", 10, after_restart=True)
    assert (jobs.row(result).status, copied(result.id)[0]) == ("succeeded", "SUCCESS")


@pytest.mark.parametrize("state", ["STARTED", "PROGRESS"])
def test_c14_a_late_state_of_another_run_does_not_hide_the_end(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    result = tasks.effect.delay("x")
    settled_meanwhile(jobs, result, state, monkeypatch)
    app.backend.store_result(result.id, None, state)
    assert (jobs.row(result).status, copied(result.id)[0]) == ("succeeded", "SUCCESS")


@shared_task(base=ReliableTask, bind=True)
def ends_in_progress(self: Any) -> None:
    self.update_state(state="PROGRESS")
    raise Ignore()


@pytest.mark.parametrize("forgets", [False, True])
def test_c14_a_late_state_of_a_job_whose_end_is_no_end_there(
    jobs: InProcess, caplog: pytest.LogCaptureFixture, forgets: bool
) -> None:
    """An ended job can answer with a state that is none of Celery's last ones."""
    result = ends_in_progress.delay()
    jobs.work()
    if forgets:
        result.forget()
    app.backend.store_result(result.id, None, "STARTED")
    assert copied(result.id)[0] == ("PENDING" if forgets else "PROGRESS")
    assert "could not" not in caplog.text


def test_c14_the_thread_that_tells_a_backend_keeps_no_connection(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be of no use once the database has closed it, and nobody would open another one."""
    monkeypatch.setattr(copies, "_writer", copies._Writer())
    seen = []

    def copy() -> None:
        seen.append(connection.connection)
        connection.ensure_connection()

    for _ in range(2):
        copies._writer.write(copy)
    wait_until(lambda: len(seen) == 2, "both have been written")
    assert seen == [None, None]


def test_c14_a_backend_that_cant_be_made_breaks_no_requeue(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where redis-py is missing in the process that requeues."""
    result = tasks.fails.delay("x")
    jobs.work()

    def missing(backend: Any, app: Any) -> Any:
        raise ImproperlyConfigured("no redis here")

    monkeypatch.setattr(LedgerBackend, "around", missing)
    assert lifecycle.requeue([jobs.row(result).pk], "default", actor="ann").done == [jobs.row(result).pk]
    assert "no redis here" in caplog.text


def test_c14_a_backend_that_is_away_keeps_nobody_from_requeueing(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [tasks.fails.delay(f"{number}").id for number in range(3)]
    jobs.work()
    tried: list[Any] = []

    def away(*args: Any, **kwargs: Any) -> None:
        tried.append(args)
        raise ConnectionError("no backend")

    monkeypatch.setattr(app.backend.wrapped, "store_result", away)
    report = lifecycle.requeue([Job.objects.get(pk=one).pk for one in ids], "default", actor="ann")
    assert (len(report.done), len(tried)) == (3, 1), "not asked once for each"


@pytest.mark.promise("I9")
def test_c14_a_backend_that_hangs_holds_up_nobody_and_is_told_later(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is asked again for twenty seconds while it is away."""
    monkeypatch.setattr(copies, "_is_in_database", lambda backend: False)
    monkeypatch.setattr(copies, "PATIENCE", 0.2)
    back, told = threading.Event(), []

    def hangs(backend: Any, task_id: str, *args: Any) -> bool:
        assert back.wait(PATIENCE)
        told.append(task_id)
        return True

    monkeypatch.setattr(LedgerBackend, "copy", hangs)
    ids = [jobs.row(tasks.effect.apply_async(("x",), countdown=60)).pk for _ in range(2)]
    for one in ids:
        lifecycle.requeue([one], "default", actor="ann")
    assert told == []
    back.set()
    wait_until(lambda: told == list(map(str, ids)), "the backend is told")


def test_an_unknown_task_is_not_failed_while_its_job_waits(jobs: InProcess) -> None:
    """Celery's consumer marks it as failed; our row waits for a worker that has the code."""
    from reliable_jobs.compat.celery_backend import results_untouched

    result = tasks.effect.apply_async(("x",), countdown=60)
    with results_untouched():
        app.backend.mark_as_failure(result.id, NotRegistered("no such task"))
    assert copied(result.id) is None
    assert app.AsyncResult(result.id).state == "PENDING"


def test_a_failing_store_fails_no_job(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no backend")

    monkeypatch.setattr(app.backend.wrapped, "store_result", away)
    good, bad = tasks.effect.delay("x"), tasks.fails.delay("y")
    assert [one.signals[-1] for one in jobs.work()] == ["task_postrun", "task_postrun"]
    assert (jobs.row(good).status, jobs.row(bad).status) == ("succeeded", "failed")
    assert app.AsyncResult(good.id).get(timeout=1) == "x"


def test_a_run_without_another_backend_makes_no_statement_for_its_result(
    jobs: InProcess, configure: Any, django_assert_num_queries: Any
) -> None:
    configure(LEDGER)
    tasks.effect.delay("x")
    [message] = jobs.take()
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as queries:
        jobs.deliver(message)
    assert not [query["sql"] for query in queries if "taskresult" in query["sql"] or "jobstate" in query["sql"]]
    assert isinstance(plain, Task)


def test_what_only_the_other_backend_has_is_found(configure: Any) -> None:
    """A project asks ``app.backend`` for its Redis client, or for the key of a result."""
    pytest.importorskip("redis")
    backend = configure(f"{LEDGER}+redis://localhost/9")
    assert backend.client is backend.wrapped.client
    assert backend.get_key_for_task("x") == b"celery-task-meta-x"
    assert not hasattr(configure(None), "client")
