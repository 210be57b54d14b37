"""Enqueue is an INSERT in the caller's transaction; what publishes it afterwards is a hook of that transaction."""

from __future__ import annotations

import datetime
import gc
import inspect
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import TestCase, override_settings
from django.utils import timezone

from reliable_jobs import databases
from reliable_jobs.dispatch import on_commit
from reliable_jobs.dispatch.publisher import Publisher
from reliable_jobs.errors import EnqueueError
from reliable_jobs.models import Job
from tests.enqueue import outbox_calls
from tests.enqueue.outbox_calls import Undo, kept, sent
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks

publishes = outbox_calls.publishes
jobs = inprocess.jobs
rows = inprocess.rows

# --- transactions -----------------------------------------------------------------------------------------------------


@pytest.mark.promise("I1")
def test_a_rollback_leaves_nothing(jobs: InProcess, publishes: list[int]) -> None:
    with pytest.raises(Undo), transaction.atomic():
        tasks.effect.delay("phantom")
        raise Undo
    assert (kept(), sent(jobs), publishes) == (set(), set(), [])


@pytest.mark.promise("I1")
def test_a_commit_publishes_all_its_jobs_at_once_and_in_order(jobs: InProcess, publishes: list[int]) -> None:
    with transaction.atomic():
        ids = [tasks.effect.delay(str(n)).id for n in range(5)]
        assert sent(jobs) == set()
    assert publishes == [5]
    assert [message.headers["id"] for message in jobs.take()] == ids


@pytest.mark.promise("I1")
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_savepoint_rolled_back_takes_its_jobs_and_only_those(
    jobs: InProcess, publishes: list[int], depth: int
) -> None:
    def nested(left: int) -> None:
        with transaction.atomic():
            tasks.effect.delay("phantom")
            if left > 1:
                nested(left - 1)

    with transaction.atomic():
        before = tasks.effect.delay("before")
        with pytest.raises(Undo), transaction.atomic():
            nested(depth)
            raise Undo
        with transaction.atomic():
            inside = tasks.effect.delay("inside")
        after = tasks.effect.delay("after")
    assert kept() == sent(jobs) == {before.id, inside.id, after.id}
    assert publishes == [3]


@pytest.mark.promise("I1")
def test_jobs_of_a_rolled_back_transaction_stay_out_of_the_next(jobs: InProcess) -> None:
    with pytest.raises(Undo) as undone, transaction.atomic():
        tasks.effect.delay("phantom")
        raise Undo
    # The traceback is kept alive on purpose, and with it everything that the frames held.
    assert undone.value is not None
    with transaction.atomic():
        result = tasks.effect.delay("kept")
    assert sent(jobs) == {result.id}


def test_without_a_transaction_a_job_is_written_and_published_at_once(jobs: InProcess, publishes: list[int]) -> None:
    first = tasks.effect.delay("one")
    assert sent(jobs) == {first.id}
    second = tasks.effect.delay("two")
    assert sent(jobs) == {second.id}
    assert publishes == [1, 1]


@pytest.mark.promise("I1")
def test_another_apps_hook_that_raises_leaves_the_job_to_the_sweeper(jobs: InProcess) -> None:
    def broken() -> None:
        raise Undo

    with pytest.raises(Undo), transaction.atomic():
        transaction.on_commit(broken)
        result = tasks.effect.delay("late")
    assert sent(jobs) == set()
    row = jobs.row(result)
    assert (row.sends, row.status) == (1, "waiting")
    Job.objects.update(check_at=timezone.now() - datetime.timedelta(seconds=1))
    jobs.sweep()
    assert sent(jobs) == {result.id}


@pytest.mark.promise("I1")
def test_a_hook_that_raises_keeps_its_jobs_out_of_the_next_transaction(jobs: InProcess) -> None:
    def broken() -> None:
        raise Undo

    with pytest.raises(Undo), transaction.atomic():
        transaction.on_commit(broken)
        stranded = tasks.effect.delay("stranded").id
    gc.collect()
    result = tasks.effect.delay("next")
    # A message too many would do no harm, its row is committed; none may be missing.
    assert result.id in sent(jobs)
    assert kept() == {stranded, result.id}


def test_a_robust_hook_that_raises_keeps_nothing_back(jobs: InProcess) -> None:
    def broken() -> None:
        raise Undo

    with transaction.atomic():
        transaction.on_commit(broken, robust=True)
        result = tasks.effect.delay("kept")
    assert sent(jobs) == {result.id}


def test_a_job_enqueued_in_a_commit_hook_goes_out_too(jobs: InProcess, publishes: list[int]) -> None:
    found: list[str] = []
    with transaction.atomic():
        transaction.on_commit(lambda: found.append(tasks.effect.delay("from a hook").id))
        result = tasks.effect.delay("from the transaction")
    assert sent(jobs) == {result.id, *found} == kept()


def test_an_error_of_dispatch_reaches_neither_caller_nor_other_hooks(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Publisher, messages: Any, timeout: float | None = None) -> Any:
        raise RuntimeError("a bug of ours")

    ran: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "publish", broken)
        with transaction.atomic():
            result = tasks.effect.delay("kept")
            transaction.on_commit(lambda: ran.append("the next hook"))
    assert ran == ["the next hook"]
    assert "Dispatch on commit failed" in caplog.text
    assert jobs.row(result).status == "waiting"


def test_the_jobs_of_two_threads_do_not_mix(jobs: InProcess) -> None:
    seen: list[int] = []
    with transaction.atomic():
        tasks.effect.delay("mine")
        assert len(on_commit._open.hooks("default")) == 1
        thread = threading.Thread(target=lambda: seen.append(len(on_commit._open.hooks("default"))))
        thread.start()
        thread.join()
    assert seen == [0]


def test_more_jobs_than_one_commit_can_publish_are_left_to_the_sweeper(
    jobs: InProcess, publishes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 3)
    with transaction.atomic():
        for n in range(5):
            tasks.effect.delay(str(n))
    assert publishes == [3]
    assert sorted(Job.objects.values_list("sends", flat=True)) == [0, 0, 1, 1, 1]
    assert jobs.sweep().published == 2


def test_jobs_of_one_hook_count_for_what_a_commit_can_publish(
    jobs: InProcess, publishes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 5)
    with transaction.atomic():
        tasks.effect.delay("0")
        tasks.effect.bulk_delay([("1",), ("2",), ("3",)])
        for n in range(4, 7):
            tasks.effect.delay(str(n))
    assert publishes == [5]
    assert sorted(Job.objects.values_list("sends", flat=True)) == [0, 0, 1, 1, 1, 1, 1]


# --- Django's own test case -------------------------------------------------------------------------------------------


def test_django_still_marks_the_transactions_of_its_test_case() -> None:
    """databases.py tells them apart by a private attribute; should Django rename it, this test says so."""
    assert "_from_testcase = True" in inspect.getsource(TestCase._enter_atomics)


@pytest.mark.django_db
def test_the_transaction_of_a_test_case_is_not_the_users(rows: InProcess) -> None:
    assert connection.in_atomic_block
    assert not databases.in_users_transaction(connection)
    with transaction.atomic():
        assert databases.in_users_transaction(connection)


def test_capture_on_commit_callbacks_publishes_once(
    rows: InProcess, publishes: list[int], django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        first = tasks.effect.delay("one")
        second = tasks.effect.delay("two")
    assert sent(rows) == {first.id, second.id}
    assert publishes == [2]


def test_callbacks_captured_and_run_one_by_one_publish_each_job_once(
    rows: InProcess, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks() as callbacks:
        first = tasks.effect.delay("one")
        second = tasks.effect.delay("two")
    for callback in callbacks:
        callback()
    found = [message.headers["id"] for message in rows.take()]
    assert sorted(found) == sorted([first.id, second.id])


# --- A11: the caller commits by hand ----------------------------------------------------------------------------------


@pytest.fixture
def by_hand(jobs: InProcess) -> Iterator[None]:
    transaction.set_autocommit(False)
    try:
        yield
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


@pytest.mark.promise("I1")
@pytest.mark.parametrize("dispatch", ["on_commit", "relay"])
def test_a11_jobs_of_a_caller_that_commits_by_hand_commit_with_it(
    jobs: InProcess, by_hand: None, dispatch: str
) -> None:
    with override_settings(RELIABLE_JOBS={"DISPATCH": dispatch}):
        tasks.effect.delay("a11 undone")
        tasks.effect.bulk_delay([("a11 undone",), ("a11 undone",)])
        transaction.rollback()
        tasks.effect.delay("a11")
        tasks.effect.apply_async(("a11",), key="a11")
        with transaction.atomic():
            tasks.effect.delay("a11")
        tasks.effect.bulk_delay([("a11",), ("a11",)])
        with pytest.raises(EnqueueError, match="autocommit is off"):
            tasks.effect.apply_async(("a11",), transactional=False)
        transaction.commit()
    transaction.set_autocommit(True)
    assert (Job.objects.count(), jobs.take()) == (5, [])
    jobs.finish()
    assert (jobs.effects("a11"), jobs.effects("a11 undone")) == (5, 0)


@pytest.mark.parametrize("link", [None, "link"])
def test_an_id_is_kept_as_its_caller_spells_it(jobs: InProcess, link: str | None) -> None:
    """``uuid4().hex`` is common, and a result backend is asked for exactly that."""
    given = uuid.uuid4().hex
    options = {"link": tasks.effect.si("linked")} if link else {}
    result = tasks.effect.apply_async(("spelled",), task_id=given, **options)
    assert (result.id, jobs.row(result).pk) == (given, uuid.UUID(given))
    (message,) = jobs.take()
    assert (message.headers["id"], message.headers["root_id"]) == (given, given)
    assert jobs.message(result).headers["id"] == given  # as the sweeper sends it
    assert jobs.deliver(message).answer == "acked"
    assert jobs.row(result).status == "succeeded"
    assert tasks.effect.app.AsyncResult(given).state == "SUCCESS"
