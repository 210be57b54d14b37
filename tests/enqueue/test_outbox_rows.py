"""Where a call's row is when the call returns: in its caller's transaction and database; and who publishes it."""

from __future__ import annotations

import contextlib
import datetime
import enum
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import override_settings
from django.utils import timezone

from reliable_jobs.dispatch import publisher
from reliable_jobs.errors import AmbiguousTransaction, EnqueueError, KeyConflict
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job
from reliable_jobs.run import arrival
from reliable_jobs.testing import enqueued_jobs, override_dispatch
from tests.celery_app import app
from tests.enqueue import outbox_calls
from tests.enqueue.outbox_calls import Undo, kept, sent
from tests.support import inprocess
from tests.support.harness import Stack
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

publishes = outbox_calls.publishes
jobs = inprocess.jobs
rows = inprocess.rows
second_database = inprocess.second_database

# --- a row is written where it is asked for ---------------------------------------------------------------------------


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


# --- more than one database -------------------------------------------------------------------------------------------


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


# --- outside the transaction ------------------------------------------------------------------------------------------


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


# --- who publishes ----------------------------------------------------------------------------------------------------


@override_settings(RELIABLE_JOBS={"DISPATCH": "relay"})
def test_with_a_relay_the_request_writes_a_row_and_nothing_else(jobs: InProcess, publishes: list[int]) -> None:
    result = tasks.effect.delay("x")
    row = jobs.row(result)
    assert (row.sends, row.check_at, publishes) == (0, None, [])
    assert jobs.sweep().published == 1
    assert sent(jobs) == {result.id}


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is there: the thread that looks for it would close the breaker within the test."""
    monkeypatch.setattr(publisher.Publisher, "_start_probe", lambda self: None)


@pytest.mark.promise("I9")
def test_with_the_breaker_open_a_job_is_born_unsent(jobs: InProcess, publishes: list[int], no_probe: None) -> None:
    publisher.publisher(app)._open = True
    result = tasks.effect.delay("x")
    assert jobs.row(result).sends == 0
    assert publishes == []
    publisher.publisher(app)._open = False
    jobs.sweep()
    assert sent(jobs) == {result.id}


@pytest.mark.promise("I9")
def test_a_breaker_that_opens_before_the_commit_leaves_the_job_waiting(
    jobs: InProcess, publishes: list[int], no_probe: None
) -> None:
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
