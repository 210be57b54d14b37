"""Enqueue: a row in the caller's transaction; dispatch: its message once that transaction has committed."""

from __future__ import annotations

import contextlib
import datetime
import enum
import gc
import inspect
import threading
import uuid
import zoneinfo
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import TestCase, override_settings
from django.utils import timezone

from reliable_jobs import databases
from reliable_jobs.dispatch import on_commit, publisher
from reliable_jobs.dispatch.publisher import Publisher
from reliable_jobs.enqueue import keys
from reliable_jobs.errors import (
    AmbiguousTransaction,
    EnqueueError,
    InvalidOption,
    KeyBusy,
    KeyConflict,
    UnserialisableArguments,
)
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job
from reliable_jobs.run import arrival
from reliable_jobs.testing import enqueued_jobs, override_dispatch
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import Stack, Transaction
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect, Parent

jobs = inprocess.jobs
rows = inprocess.rows
second_database = inprocess.second_database

UTC = datetime.timezone.utc


class Undo(Exception):
    pass


@pytest.fixture
def publishes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each publish call had; the calls go on to the broker."""
    sizes: list[int] = []
    real = Publisher.publish

    def counted(self: Publisher, messages: Any, timeout: float | None = None) -> Any:
        sizes.append(len(messages))
        return real(self, messages, timeout)

    monkeypatch.setattr(Publisher, "publish", counted)
    return sizes


def sent(jobs: InProcess) -> set[str]:
    return {message.headers["id"] for message in jobs.take()}


def kept() -> set[str]:
    return {str(pk) for pk in Job.objects.values_list("pk", flat=True)}


# --- transactions ---------------------------------------------------------------------------------------------------


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


# --- a row is written where it is asked for ---------------------------------------------------------------------------
#
# An INSERT that waits for the transaction's next statement, or travels with its COMMIT, was tried: docs/performance.md.


@contextlib.contextmanager
def a_table_that_refuses(queue: str) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE reliable_jobs_job ADD CONSTRAINT refused CHECK (queue <> '{queue}')")
    yield
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE reliable_jobs_job DROP CONSTRAINT refused")


@pytest.mark.promise("I1")
@pytest.mark.parametrize("bulk", [False, True])
def test_a_refused_enqueue_can_be_guarded_by_a_block_of_its_own(jobs: InProcess, bulk: bool) -> None:
    if connection.vendor != "postgresql":
        return  # SQLite can't add a constraint to a table
    with a_table_that_refuses("refused"), transaction.atomic():
        Effect.objects.create(name="order")
        with pytest.raises(DatabaseError, match="refused"), transaction.atomic():
            if bulk:
                tasks.effect.bulk_delay([("phantom",)], queue="refused")
            else:
                tasks.effect.apply_async(("phantom",), queue="refused")
        result = tasks.effect.delay("instead")
    assert jobs.effects("order") == 1
    assert kept() == sent(jobs) == {result.id}


@pytest.mark.promise("I1")
def test_a_savepoint_of_the_drivers_own_takes_its_rows_along(jobs: InProcess) -> None:
    if connection.vendor != "postgresql":
        return
    with transaction.atomic():
        result = tasks.effect.delay("kept")
        with contextlib.suppress(Undo), connection.connection.transaction():
            tasks.effect.delay("phantom")
            raise Undo
    assert kept() == {result.id}


def test_a_row_is_written_under_the_wrappers_of_its_call(jobs: InProcess) -> None:
    seen: list[str] = []

    def see(execute: Any, sql: str, *rest: Any) -> Any:
        seen.append(sql)
        return execute(sql, *rest)

    with transaction.atomic():
        with connection.execute_wrapper(see):
            tasks.effect.delay("x")
        Effect.objects.create(name="order")
    assert len(seen) == 1
    assert "reliable_jobs_job" in seen[0]


def test_a_replaced_on_commit_keeps_no_row_from_being_written(rows: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "on_commit", lambda hook, using=None, robust=False: hook())
    with override_dispatch(), transaction.atomic():
        result = tasks.effect.delay("x")
    assert kept() == {result.id}


def test_the_rows_of_a_transaction_keep_the_order_of_their_calls(jobs: InProcess) -> None:
    with transaction.atomic():
        ids = [tasks.effect.delay(str(n)).id for n in range(20)]
    assert [str(job.id) for job in enqueued_jobs(tasks.effect)] == ids


def test_a_queue_named_by_an_enum_is_the_value_in_the_row_too(jobs: InProcess) -> None:
    class Queue(str, enum.Enum):
        MAIL = "mail"

    job = jobs.row(tasks.effect.apply_async(("x",), queue=Queue.MAIL))
    assert job.queue == "mail"


# --- Django's own test case -----------------------------------------------------------------------------------------


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


# --- more than one database -----------------------------------------------------------------------------------------


def test_a_job_belongs_to_the_database_whose_transaction_is_open(jobs: InProcess, second_database: str) -> None:
    with transaction.atomic(using="second"):
        result = tasks.effect.delay("there")
    assert not Job.objects.using("default").exists()
    assert Job.objects.using("second").get().pk == uuid.UUID(result.id)
    (message,) = jobs.take()
    assert message.headers[HEADER]["using"] == "second"


def test_transactions_open_on_two_databases_want_a_decision(jobs: InProcess, second_database: str) -> None:
    with transaction.atomic(), transaction.atomic(using="second"):
        with pytest.raises(AmbiguousTransaction, match=r"default and second.*using=") as caught:
            tasks.effect.delay("where?")
        result = tasks.effect.apply_async(("there",), using="second")
    assert isinstance(caught.value, EnqueueError)
    assert not Job.objects.using("default").exists()
    assert Job.objects.using("second").get().pk == uuid.UUID(result.id)


def test_a_named_database_is_used_though_a_transaction_is_open_on_another(
    jobs: InProcess, second_database: str
) -> None:
    with pytest.raises(Undo), transaction.atomic():
        tasks.effect.apply_async(("stays",), using="second")
        raise Undo
    assert Job.objects.using("second").count() == 1


def test_a_rollback_on_the_other_database_takes_its_job_along(jobs: InProcess, second_database: str) -> None:
    with pytest.raises(Undo), transaction.atomic(using="second"):
        tasks.effect.delay("phantom")
        raise Undo
    assert not Job.objects.using("second").exists()
    assert sent(jobs) == set()


def test_a_database_that_does_not_exist_is_an_error_that_names_it(jobs: InProcess) -> None:
    with pytest.raises(Exception, match="nowhere"):
        tasks.effect.apply_async(("x",), using="nowhere")


@pytest.mark.parametrize(
    "pointer", [None, {}, {"using": "nowhere"}, {"using": 5}, {"using": ["default"]}, "default", []], ids=repr
)
def test_a_pointer_that_names_no_database_of_ours_means_the_usual_one(jobs: InProcess, pointer: Any) -> None:
    assert arrival.pointer_alias(pointer) == "default"


# --- outside the transaction ----------------------------------------------------------------------------------------


def test_a_job_outside_the_transaction_wants_a_writer_sqlite_has_not(jobs: InProcess) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("SQLite only")
    with transaction.atomic():
        Effect.objects.create(name="order")
        with pytest.raises(EnqueueError, match="SQLite"):
            tasks.effect.apply_async(("alarm",), transactional=False)
    assert not Job.objects.exists()


def test_a_job_outside_the_transaction_is_ordinary_where_none_is_open(jobs: InProcess) -> None:
    result = tasks.effect.apply_async(("alarm",), transactional=False)
    assert sent(jobs) == {result.id} == kept()


@pytest.mark.servers
def test_a_job_outside_the_transaction_leaves_no_connection_behind(stack: Stack, idle_queue: str) -> None:
    assert stack.effects("order") == 0
    before = stack.sessions("true")
    with pytest.raises(Undo), transaction.atomic():
        Effect.objects.create(name="order")
        result = tasks.effect.apply_async(("alarm",), transactional=False)
        assert stack.depth() == 1
        raise Undo
    assert stack.job(result).status == "waiting"
    assert stack.effects("order") == 0
    assert stack.sessions("true") <= before


@pytest.mark.servers
def test_an_error_outside_the_transaction_breaks_nothing_inside(stack: Stack) -> None:
    with transaction.atomic():
        tasks.effect.apply_async(("one",), key="k", transactional=False)
        with pytest.raises(KeyConflict):
            tasks.effect.apply_async(("two",), key="k", transactional=False)
        Effect.objects.create(name="still works")
    assert stack.effects("still works") == 1


# --- keys (C5) ------------------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_job(jobs: InProcess, publishes: list[int]) -> None:
    first = tasks.effect.apply_async(("one",), key="k")
    second = tasks.effect.apply_async(("one",), key="k")
    assert first.id == second.id
    assert Job.objects.count() == 1
    assert publishes == [1]


def test_the_same_key_twice_in_one_transaction_is_one_job(jobs: InProcess, publishes: list[int]) -> None:
    with transaction.atomic():
        ids = {tasks.effect.apply_async(("one",), key="k").id for _ in range(3)}
    assert kept() == sent(jobs) == ids
    assert publishes == [1]


def test_other_arguments_under_a_used_key_are_an_error_that_names_both(jobs: InProcess) -> None:
    first = tasks.effect.apply_async(("one",), key="k")
    with transaction.atomic():
        with pytest.raises(KeyConflict, match=r"key 'k' already belongs to job .* other arguments") as caught:
            tasks.effect.apply_async(("two",), key="k")
        Effect.objects.create(name="the transaction goes on")
    assert first.id in str(caught.value)
    assert jobs.effects("the transaction goes on") == 1


def test_a_key_is_free_again_once_its_job_is_settled(jobs: InProcess) -> None:
    first = tasks.effect.apply_async(("one",), key="k")
    jobs.work()
    assert jobs.row(first).status == "succeeded"
    second = tasks.effect.apply_async(("two",), key="k")
    assert first.id != second.id
    assert set(Job.objects.values_list("key", flat=True)) == {"k"}


def test_a_key_is_free_again_after_a_failure(jobs: InProcess) -> None:
    first = tasks.fails.apply_async(("one",), key="k")
    jobs.work()
    assert jobs.row(first).status == "failed"
    assert tasks.fails.apply_async(("two",), key="k").id != first.id


def test_a_key_is_kept_while_its_job_retries(jobs: InProcess) -> None:
    first = tasks.fails_first.apply_async(("one", 2), key="k")
    jobs.work()
    assert jobs.row(first).failures == 1
    assert tasks.fails_first.apply_async(("one", 2), key="k").id == first.id
    jobs.finish()
    assert Job.objects.count() == 1


def test_a_key_for_ever_stays_taken_after_its_job_has_settled(jobs: InProcess) -> None:
    first = tasks.effect.apply_async(("one",), key="k", key_forever=True)
    jobs.work()
    assert tasks.effect.apply_async(("one",), key="k", key_forever=True).id == first.id
    assert tasks.effect.apply_async(("one",), key="k").id == first.id
    with pytest.raises(KeyConflict):
        tasks.effect.apply_async(("two",), key="k", key_forever=True)
    assert jobs.effects("one") == 1


def test_a_key_belongs_to_its_task(jobs: InProcess) -> None:
    assert tasks.effect.apply_async(("k",), key="k").id != tasks.fails.apply_async(("k",), key="k").id


@pytest.mark.promise("I1")
def test_a_key_whose_transaction_rolled_back_is_free(jobs: InProcess) -> None:
    with pytest.raises(Undo), transaction.atomic():
        tasks.effect.apply_async(("one",), key="k")
        raise Undo
    result = tasks.effect.apply_async(("two",), key="k")
    assert kept() == sent(jobs) == {result.id}


@pytest.mark.parametrize("key", ["", "x" * 256, 5.0, True, b"k", 10**300], ids=repr)
def test_a_key_must_be_a_text_that_fits(jobs: InProcess, key: Any) -> None:
    with pytest.raises(InvalidOption, match="1 to 255 characters"):
        tasks.effect.apply_async(("x",), key=key)
    assert kept() == set()


@pytest.mark.parametrize(
    ("key", "text"),
    [(5, "5"), (enum.IntEnum("N", {"FIVE": 5}).FIVE, "5"), (uuid.UUID(int=1), str(uuid.UUID(int=1)))],
    ids=repr,
)
def test_c5_a_number_or_uuid_is_the_key_that_its_text_is(jobs: InProcess, key: Any, text: str) -> None:
    first = tasks.effect.apply_async(("x",), key=key)
    assert tasks.effect.apply_async(("x",), key=text).id == first.id
    assert Job.objects.get().key == text


def test_a_key_with_a_nul_character_is_refused_and_not_by_the_database(jobs: InProcess) -> None:
    with pytest.raises(InvalidOption, match="key="):
        tasks.effect.apply_async(("x",), key="a\u0000b")


@pytest.mark.servers
def test_a_key_held_by_an_open_transaction_is_waited_for_then_busy(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "KEY_LOCK_TIMEOUT_MS", 150)
    other = Transaction(lambda: tasks.effect.apply_async(("one",), key="k"))
    with transaction.atomic():
        with pytest.raises(KeyBusy, match="another open transaction"):
            tasks.effect.apply_async(("one",), key="k")
        Effect.objects.create(name="goes on")
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout')")
            assert cursor.fetchone()[0] == "0"
    other.end()
    assert stack.effects("goes on") == 1
    assert tasks.effect.apply_async(("one",), key="k").id == other.answer.id


@pytest.mark.servers
@pytest.mark.parametrize("commit", [True, False])
def test_a_key_that_another_transaction_leaves_is_taken_or_shared(stack: Stack, commit: bool) -> None:
    other = Transaction(lambda: tasks.effect.apply_async(("one",), key="k"))
    threading.Timer(0.2, lambda: other.end(commit=commit)).start()
    mine = tasks.effect.apply_async(("one",), key="k")
    assert (mine.id == other.answer.id) == commit
    assert Job.objects.count() == 1


# --- task ids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, uuid.UUID])
def test_a_given_task_id_is_the_jobs_id(jobs: InProcess, kind: Any) -> None:
    given = str(uuid.uuid4())
    assert tasks.effect.apply_async(("x",), task_id=kind(given)).id == given
    assert kept() == sent(jobs) == {given}


def test_a_waiting_task_id_is_the_same_job(jobs: InProcess, publishes: list[int]) -> None:
    given = str(uuid.uuid4())
    for _ in range(2):
        assert tasks.effect.apply_async(("x",), task_id=given).id == given
    assert Job.objects.count() == 1
    assert publishes == [1]


def test_a_waiting_task_id_with_other_arguments_is_an_error(jobs: InProcess) -> None:
    given = str(uuid.uuid4())
    tasks.effect.apply_async(("x",), task_id=given)
    with pytest.raises(KeyConflict, match=f"task id {given}"):
        tasks.effect.apply_async(("y",), task_id=given)


def test_a_task_id_that_has_settled_is_an_error_that_says_what_to_do(jobs: InProcess) -> None:
    given = str(uuid.uuid4())
    tasks.effect.apply_async(("x",), task_id=given)
    jobs.work()
    with pytest.raises(KeyConflict, match=r"succeeded already.*requeue that job"):
        tasks.effect.apply_async(("x",), task_id=given)
    assert jobs.effects("x") == 1


@pytest.mark.parametrize("given", ["order-5", 5, "", "g" * 32], ids=repr)
def test_a_task_id_that_is_no_uuid_is_refused_naming_key(jobs: InProcess, given: Any) -> None:
    with pytest.raises(InvalidOption, match=r"not a UUID.*key="):
        tasks.effect.apply_async(("x",), task_id=given)


def test_a_task_id_and_a_key_that_name_different_jobs_are_an_error(jobs: InProcess) -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    tasks.effect.apply_async(("x",), task_id=one)
    tasks.effect.apply_async(("x",), task_id=two, key="k")
    assert tasks.effect.apply_async(("x",), task_id=two, key="k").id == two
    with pytest.raises(KeyConflict):
        tasks.effect.apply_async(("x",), task_id=one, key="k2")


# --- who publishes --------------------------------------------------------------------------------------------------


@override_settings(RELIABLE_JOBS={"DISPATCH": "relay"})
def test_with_a_relay_the_request_writes_a_row_and_nothing_else(jobs: InProcess, publishes: list[int]) -> None:
    result = tasks.effect.delay("x")
    row = jobs.row(result)
    assert (row.sends, row.check_at, publishes) == (0, None, [])
    assert jobs.sweep().published == 1
    assert sent(jobs) == {result.id}


@pytest.mark.promise("I9")
def test_with_the_breaker_open_a_job_is_born_unsent(jobs: InProcess, publishes: list[int]) -> None:
    publisher.publisher(app)._open = True
    result = tasks.effect.delay("x")
    assert jobs.row(result).sends == 0
    assert publishes == []
    publisher.publisher(app)._open = False
    jobs.sweep()
    assert sent(jobs) == {result.id}


@pytest.mark.promise("I9")
def test_a_breaker_that_opens_before_the_commit_leaves_the_job_waiting(jobs: InProcess, publishes: list[int]) -> None:
    with transaction.atomic():
        result = tasks.effect.delay("x")
        publisher.publisher(app)._open = True
    publisher.publisher(app)._open = False
    assert publishes == []
    assert jobs.row(result).sends == 1
    Job.objects.update(check_at=timezone.now() - datetime.timedelta(seconds=1))
    jobs.sweep()
    assert sent(jobs) == {result.id}


def test_a_new_job_is_looked_at_after_its_grace(jobs: InProcess) -> None:
    with override_settings(RELIABLE_JOBS={"GRACE": 100}):
        row = jobs.row(tasks.effect.delay("x"))
    assert 99 < (row.check_at - row.due_at).total_seconds() < 101


# --- times ----------------------------------------------------------------------------------------------------------


def due_in(row: Job) -> float:
    return (row.due_at - row.created_at).total_seconds()


@pytest.mark.parametrize("countdown", [60, 60.5, 1e9])
def test_a_countdown_makes_the_row_due_later_and_publishes_nothing(
    jobs: InProcess, publishes: list[int], countdown: float
) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), countdown=countdown))
    assert abs(due_in(row) - countdown) < 1
    assert (row.sends, publishes) == (0, [])


@pytest.mark.parametrize("countdown", [0, 0.0, -5, None])
def test_no_countdown_means_now(jobs: InProcess, publishes: list[int], countdown: float | None) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), countdown=countdown))
    assert abs(due_in(row)) < 1
    assert (row.sends, publishes) == (1, [1])


@pytest.mark.parametrize("countdown", ["5", True, [], float("nan"), float("inf"), 1e12, datetime.timedelta(seconds=5)])
def test_a_countdown_that_is_no_number_of_seconds_is_refused(jobs: InProcess, countdown: Any) -> None:
    with pytest.raises(InvalidOption, match=r"countdown=.*number of seconds"):
        tasks.effect.apply_async(("x",), countdown=countdown)
    assert kept() == set()


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
ETA = datetime.datetime(2031, 7, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "eta",
    [ETA, ETA.astimezone(BERLIN), ETA.replace(tzinfo=None), ETA.isoformat(), "2031-07-01T12:00:00Z"],
    ids=["utc", "berlin", "naive", "text", "text with Z"],
)
def test_an_eta_means_the_same_instant_in_every_form(jobs: InProcess, publishes: list[int], eta: Any) -> None:
    """A naive one is UTC whatever the timezone of Django and Celery (here Berlin): that is what Celery makes of it."""
    row = jobs.row(tasks.effect.apply_async(("x",), eta=eta))
    assert row.due_at == ETA
    assert (row.sends, publishes) == (0, [])


def test_a_past_eta_means_now(jobs: InProcess, publishes: list[int]) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), eta=datetime.datetime(2001, 1, 1, tzinfo=UTC)))
    assert abs(due_in(row)) < 1
    assert (row.sends, publishes) == (1, [1])


@pytest.mark.parametrize(
    ("name", "eta"),
    [
        ("eta", 5),
        *((name, bad) for name in ("eta", "expires") for bad in ("soon", [], datetime.date(2031, 1, 1))),
        *((name, datetime.timedelta(1)) for name in ("eta", "expires")),
    ],
    ids=repr,
)
def test_a_time_that_is_none_is_refused(jobs: InProcess, name: str, eta: Any) -> None:
    with pytest.raises(InvalidOption, match=rf"{name}=.*is not a datetime"):
        tasks.effect.apply_async(("x",), **{name: eta})
    assert kept() == set()


def test_countdown_goes_before_eta_as_in_celery(jobs: InProcess) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), countdown=60, eta=ETA))
    assert abs(due_in(row) - 60) < 1


@pytest.mark.parametrize("expires", [ETA, ETA.replace(tzinfo=None), ETA.isoformat()], ids=repr)
def test_expires_as_a_time_is_kept_in_the_row(jobs: InProcess, expires: Any) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), expires=expires))
    assert row.expires_at == ETA
    assert row.sends == 1


@pytest.mark.parametrize("expires", [30, 30.5])
def test_expires_in_seconds_counts_from_now(jobs: InProcess, expires: float) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), expires=expires))
    assert abs((row.expires_at - row.created_at).total_seconds() - expires) < 1


@pytest.mark.parametrize("expires", [float("nan"), float("inf"), True, 1e12])
def test_expires_in_seconds_must_be_a_number_that_a_clock_can_show(jobs: InProcess, expires: Any) -> None:
    with pytest.raises(InvalidOption, match="expires="):
        tasks.effect.apply_async(("x",), expires=expires)


def test_an_error_at_the_call_leaves_the_transaction_usable(jobs: InProcess) -> None:
    with transaction.atomic():
        Parent.objects.create(name="kept")
        for call in (
            lambda: tasks.effect.delay(object()),
            lambda: tasks.effect.delay(),
            lambda: tasks.effect.apply_async(("x",), task_id="no"),
        ):
            with pytest.raises((UnserialisableArguments, TypeError, InvalidOption)):
                call()
    assert Parent.objects.filter(name="kept").exists()
    assert kept() == set()


# --- what a call adds to a test's assertNumQueries (E8) ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "postgresql", "sqlite"),
    [
        (lambda: tasks.effect.delay("x"), 1, 1),
        (lambda: tasks.effect.apply_async(("x",), countdown=60, queue="q", link=tasks.effect.si("y")), 1, 1),
        (lambda: tasks.effect.apply_async(("x",), key="new"), 6, 4),
        (lambda: tasks.effect.apply_async(("x",), key="there"), 1, 1),
        (lambda: tasks.effect.apply_async(("x",), task_id=str(uuid.uuid4())), 1, 1),
        (lambda: (tasks.effect.s("x") | tasks.effect.si("y")).delay(), 1, 1),
        (lambda: tasks.effect.bulk_delay([("x",)] * 20), 4, 3),
    ],
    ids=["delay", "options", "new key", "key that is there", "task id", "chain", "bulk"],
)
def test_e8_the_queries_of_a_call_are_few_and_known(
    rows: InProcess, django_assert_num_queries: Any, call: Any, postgresql: int, sqlite: int
) -> None:
    tasks.effect.apply_async(("x",), key="there")
    with transaction.atomic(), django_assert_num_queries(postgresql if connection.vendor == "postgresql" else sqlite):
        call()


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
