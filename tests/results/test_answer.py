"""One answer for each state of a row, whoever asks; the task's own exception class."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pytest
from celery import VERSION, states
from celery.exceptions import BackendGetMetaError, Reject, TaskRevokedError
from celery.result import GroupResult
from django.db import IntegrityError, InterfaceError, OperationalError, transaction

from reliable_jobs import ReliableTask, lifecycle, reliable_task
from reliable_jobs.errors import JobExpired, JobParked
from reliable_jobs.message import exception_text
from reliable_jobs.models import Job, JobState
from reliable_jobs.results import rows
from reliable_jobs.results import states as side_states
from reliable_jobs.results.answer import answer
from reliable_jobs.status import Reason, Status
from tests.celery_app import app
from tests.support import inprocess
from tests.support.backends import LEDGER, backend_of
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs = inprocess.jobs


def answers(task_id: str) -> list[tuple[str, str, Any, Any]]:
    """State, kind, text and children as each reader has them, asked in a new process's way."""
    readers = [
        tasks.effect.AsyncResult(task_id),
        app.AsyncResult(task_id),
        GroupResult("g", [app.AsyncResult(task_id)], app=app)[0],
    ]
    found = [(one.state, type(one.result).__name__, str(one.result), one.children) for one in readers]
    [(_, meta)] = list(app.backend.get_many([task_id], READY_STATES=states.ALL_STATES, max_iterations=1))
    result = app.AsyncResult(task_id)._set_cache(meta)  # as it makes results of the children
    found.append((result["status"], type(result["result"]).__name__, str(result["result"]), result.get("children")))
    return found


def only_answer(task_id: str) -> tuple[str, str, Any, Any]:
    first, *others = answers(task_id)
    assert all(other == first for other in others), [first, *others]
    return first


class Shy(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Demanding(Exception):
    def __new__(cls, *args: Any) -> Demanding:
        if not args:
            raise TypeError("needs arguments")
        return super().__new__(cls, *args)

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no x"),
        KeyError("missing"),
        OSError(2, "No such file"),
        tasks.OutOfStock("tea", 3),
        IntegrityError("duplicate"),
        ValueError(),
        ValueError({"a": [1, None]}, decimal.Decimal("1.5"), datetime.date(2026, 1, 2)),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        Reject("why", requeue=False),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_comes_back_as_it_was(error: Exception) -> None:
    again = exception_text.decode(exception_text.encode(error))
    assert type(again) is type(error)
    if not isinstance(error, UnicodeDecodeError):
        assert (again.args, str(again)) == (error.args, str(error))


def test_what_can_not_come_back_says_what_it_was() -> None:
    strange = exception_text.decode(
        exception_text.encode(ValueError(object(), "x" * 50_000, {"__type__": "no", "__value__": 1}))
    )
    assert isinstance(strange, ValueError)
    assert len(str(strange)) < 25_000
    local = type("Local", (ValueError,), {})("gone")
    again = exception_text.decode(exception_text.encode(local))
    assert (type(again).__name__, str(again)) == ("Local", "gone")
    assert "one and two" in str(exception_text.decode(exception_text.encode(Demanding("one", "two"))))
    assert exception_text.decode(exception_text.encode(Shy("a"))).args == ("a",)
    assert isinstance(exception_text.decode("no json"), RuntimeError)


def test_a_text_makes_nothing_but_exceptions() -> None:
    """As Celery: whoever can write to the table must not be able to have any function called."""
    for module, name in [("os", "system"), ("builtins", "SystemExit"), ("builtins", "print"), ("no.such", "Error")]:
        text = f'{{"exc_type": "{name}", "exc_module": "{module}", "exc_message": ["echo x"]}}'
        made = exception_text.decode(text)
        assert isinstance(made, Exception)
        assert (type(made).__name__, made.args) == (name, ("echo x",))


@pytest.mark.parametrize("stored", [True, False])
def test_c11_every_reader_has_the_tasks_own_exception(jobs: InProcess, stored: bool) -> None:
    result = tasks.out_of_stock.delay("tea")
    jobs.work()
    if not stored:
        app.backend.wrapped.forget(result.id)  # as between the commit and the tracer's store
    assert only_answer(result.id)[:3] == ("FAILURE", "OutOfStock", "0 of tea left")
    for reader in (tasks.effect.AsyncResult(result.id), app.AsyncResult(result.id)):
        with pytest.raises(tasks.OutOfStock, match="0 of tea left"):
            reader.get(timeout=1)
    for group in (GroupResult("g", [app.AsyncResult(result.id)], app=app), GroupResult("g", [result], app=app)):
        with pytest.raises(tasks.OutOfStock):
            group.get(timeout=1)
        with pytest.raises(tasks.OutOfStock):
            group.join(timeout=1)


def test_c12_an_expired_job_has_one_answer(jobs: InProcess) -> None:
    result = tasks.effect.apply_async(("x",), expires=60)
    message = jobs.take()
    Job.objects.update(expires_at=datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc))
    jobs.deliver(message[0])
    assert jobs.row(result).status == "expired"
    state, kind, _, _ = only_answer(result.id)
    assert (state, kind) == ("REVOKED", "JobExpired")
    assert issubclass(JobExpired, TaskRevokedError)
    assert app.backend.wrapped.get_task_meta(result.id)["status"] == "REVOKED"
    with pytest.raises(TaskRevokedError):
        app.AsyncResult(result.id).get(timeout=1)


def test_a_retrying_job_says_retry_and_a_requeued_one_pending(jobs: InProcess) -> None:
    result = tasks.fails_first.delay("x", 1)
    jobs.work()
    assert only_answer(result.id)[:3] == ("RETRY", "ValueError", "attempt 0")
    jobs.finish()
    assert only_answer(result.id)[:3] == ("SUCCESS", "str", "x")
    lifecycle.requeue([jobs.row(result).pk], "default", actor="ann")
    assert only_answer(result.id)[:2] == ("PENDING", "NoneType")
    assert app.backend.wrapped.get_task_meta(result.id)["status"] == "PENDING", "the other backend says what it was"


def test_children_are_in_the_answer_and_collect_follows_them(jobs: InProcess) -> None:
    started = tasks.starts_another.delay("x")
    grouped = tasks.starts_a_group.delay("a", "b")
    jobs.work()
    app.backend.wrapped.forget(started.id)
    [[child]] = [app.AsyncResult(started.id).children]
    assert child.get(timeout=1) == "x"
    assert [value for result, value in app.AsyncResult(started.id).collect() if not result.children] == ["x"]
    [group] = tasks.effect.AsyncResult(grouped.id).children
    assert isinstance(group, GroupResult)
    assert group.get(timeout=1) == ["a", "b"]
    only_answer(started.id)


@pytest.mark.parametrize("status", [status.value for status in Status])
def test_a_row_of_each_status_has_an_answer(status: str) -> None:
    row = Job(task="t", queue="q", status=status, reason=Reason.PARKED, error="why")
    meta = answer(row, None, {"status": "SUCCESS", "result": 1})
    assert (meta["status"] in states.READY_STATES) == row.is_final or status == "sent"
    if status == "failed":
        assert isinstance(meta["result"], JobParked)


def test_what_a_run_says_of_itself_counts_while_the_row_is_as_it_was() -> None:
    row = Job(task="t", queue="q", status="waiting", epoch=3)
    side = JobState(job_id=row.pk, epoch=3, state="PROGRESS", meta='{"done": 1}')
    assert (answer(row, side, None)["status"], answer(row, side, None)["result"]) == ("PROGRESS", {"done": 1})
    row.epoch = 4
    assert answer(row, side, None)["status"] == "PENDING", "of an earlier run"
    row.status, side.epoch = "succeeded", 4
    assert answer(row, side, None)["status"] == "SUCCESS", "a final row wins"


def test_a_task_may_name_its_own_end_and_raise_ignore(jobs: InProcess) -> None:
    """Celery's own way: update_state(state=FAILURE), raise Ignore()."""
    result = tasks.names_its_end.delay()
    jobs.work()
    assert jobs.row(result).status == "succeeded"
    assert only_answer(result.id)[:3] == ("FAILURE", "OutOfStock", "3 of tea left")
    with pytest.raises(tasks.OutOfStock):
        result.get(timeout=1)


def test_forget_empties_the_result_and_answers_pending(jobs: InProcess) -> None:
    result = tasks.effect.delay("x")
    jobs.work()
    assert result.get(timeout=1) == "x"
    result.forget()
    assert only_answer(result.id)[:2] == ("PENDING", "NoneType")
    assert (jobs.row(result).status, jobs.row(result).result) == ("succeeded", None)
    lifecycle.requeue([jobs.row(result).pk], "default", actor="ann")
    jobs.finish()
    assert only_answer(result.id)[:3] == ("SUCCESS", "str", "x"), "run again, it has a result again"


def test_secrets_are_not_in_an_exceptions_arguments(jobs: InProcess) -> None:
    result = leaks.delay("s3cret-token")
    jobs.work()
    row = jobs.row(result)
    assert "s3cret" not in (row.exception or "") + row.error + row.traceback


@reliable_task(name="test_answer.leaks", sensitive=True)
def leaks(token: str) -> None:
    raise Quiet(token)


class Quiet(Exception):
    def __str__(self) -> str:
        return "nothing to see"


@reliable_task(name="test_answer.own_backend", base=ReliableTask)
def plain_answer() -> int:
    return 1


def test_get_many_is_one_select(jobs: InProcess, django_assert_num_queries: Any) -> None:
    ids = tasks.effect.bulk_delay([(f"{number}",) for number in range(20)])
    jobs.work()
    with django_assert_num_queries(1):
        found = dict(app.backend.get_many(ids))
    assert {meta["result"] for meta in found.values()} == {f"{number}" for number in range(20)}
    with django_assert_num_queries(1):
        assert len(GroupResult("g", [app.AsyncResult(one) for one in ids], app=app).get(timeout=1)) == 20


def test_a_state_of_a_settled_job_is_not_written(jobs: InProcess) -> None:
    result = tasks.effect.delay("x")
    assert side_states.say(jobs.row(result).pk, "PROGRESS", None)
    assert not side_states.say(jobs.row(result).pk, "STARTED", None, weak=True), "the same run has said more"
    jobs.work()
    assert not side_states.say(jobs.row(result).pk, "PROGRESS", None)
    assert only_answer(result.id)[0] == "SUCCESS"


def test_track_started_says_started_until_the_job_waits_again(jobs: InProcess) -> None:
    result = tracked.delay()
    jobs.work()
    assert seen_inside == ["STARTED"], "of an atomic run, whose row shows nothing"
    assert only_answer(result.id)[0] == "RETRY", "of an earlier run"


seen_inside: list[str] = []


@reliable_task(name="test_answer.tracked", track_started=True, bind=True)
def tracked(self: Any) -> None:
    seen_inside.append(app.AsyncResult(self.request.id).state)
    raise self.retry(countdown=60)


# --- the arguments (result_extended) ----------------------------------------------------------------------------------


def test_arguments_are_in_the_answer_of_a_job_that_has_one(jobs: InProcess, django_assert_num_queries: Any) -> None:
    result = tasks.effect.apply_async(("x",), {"value": "y"})
    assert (app.AsyncResult(result.id).args, app.AsyncResult(result.id).kwargs) == (None, None), "as Celery's PENDING"
    jobs.work()
    with django_assert_num_queries(1):
        assert list(app.AsyncResult(result.id).args) == ["x"]
    [(_, meta)] = app.backend.get_many([result.id])
    assert (meta["args"], meta["kwargs"]) == (["x"], {"value": "y"})


def test_arguments_are_not_read_unless_the_project_asks(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    # Up to Celery 5.6 the name as it stands in Django's settings wins.
    monkeypatch.setitem(app.conf, "result_extended" if VERSION >= (5, 7) else "CELERY_RESULT_EXTENDED", False)
    result = tasks.effect.delay("x")
    jobs.work()
    assert "args" not in app.backend.get_task_meta(result.id)


def test_sensitive_arguments_are_not_in_the_answer(jobs: InProcess) -> None:
    result = tasks.login.delay("ann", password="s3cret")
    jobs.work()
    answered = app.AsyncResult(result.id)
    assert "s3cret" not in f"{answered.args} {answered.kwargs} {answered.result} {answered.traceback}"
    assert "ann" in f"{answered.args}"


# --- a database that is away ------------------------------------------------------------------------------------------


def test_a_row_that_can_not_be_read_is_not_taken_for_a_waiting_one(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tasks.effect.delay("x")

    def away(*args: Any) -> None:
        raise OperationalError("the server is away")

    monkeypatch.setattr(rows, "_read", away)
    for reader in (tasks.effect.AsyncResult(result.id), app.AsyncResult(result.id)):
        with pytest.raises(BackendGetMetaError, match="the server is away"):
            assert reader.state
        with pytest.raises(BackendGetMetaError):
            reader.get(timeout=5)
    jobs.work()
    app.backend.wrapped.store_result(result.id, "from there", "SUCCESS")
    assert app.AsyncResult(result.id).get(timeout=5) == "from there", "another backend may still know"


def test_a_reader_whose_connection_has_died_opens_another(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that waits is no request, at whose start Django would look."""
    result = tasks.effect.delay("x")
    jobs.work()
    died: list[Any] = []

    class Dies:
        def __iter__(self) -> Any:
            died.append(self)
            raise InterfaceError("connection already closed")

        def all(self) -> list[int]:
            return [1]

    assert rows._asked_again_once("default", Dies()) == [1]
    assert len(died) == 1
    with transaction.atomic(), pytest.raises(InterfaceError):
        rows._asked_again_once("default", Dies())
    assert result.get(timeout=1) == "x"


# --- eager ------------------------------------------------------------------------------------------------------------


def test_an_eager_result_that_is_to_be_stored_is_the_other_backends(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    monkeypatch.setitem(app.conf, "task_store_eager_result", True)
    monkeypatch.setattr(tasks.effect, "store_eager_result", True)
    with backend_of(f"{LEDGER}+django-db://"):
        result = tasks.effect.delay("x")
        assert app.AsyncResult(result.id).get(timeout=1) == "x"
    assert Job.objects.count() == 0
