"""Rows that wait for their transaction's next statement, or its COMMIT."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from reliable_jobs import flush, joined
from reliable_jobs.models import Job
from reliable_jobs.testing import override_dispatch
from tests import inprocess
from tests.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect, Parent

jobs = inprocess.jobs
rows = inprocess.rows

pytestmark = pytest.mark.promise("I1")


class Undo(Exception):
    pass


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """What is executed, but for the BEGIN and COMMIT that Django notes of its own."""
    statements: list[str] = []
    with CaptureQueriesContext(connection) as queries:
        yield statements
    texts = [query["sql"] for query in queries.captured_queries]
    statements += [text for text in texts if text and not re.match("(BEGIN|COMMIT|SAVEPOINT|RELEASE)", text)]


def kept() -> set[str]:
    return {str(pk) for pk in Job.objects.values_list("pk", flat=True)}


def sent(jobs: InProcess) -> set[str]:
    return {message.headers["id"] for message in jobs.take()}


def can_join() -> bool:
    connection.ensure_connection()
    return joined.can_join(connection)


# --- as few statements as can be ------------------------------------------------------------------------------------


def test_the_rows_of_several_calls_are_one_insert_that_travels_with_the_commit(jobs: InProcess) -> None:
    with said() as statements, transaction.atomic():
        Effect.objects.create(name="order")
        ids = {tasks.effect.delay(str(n)).id for n in range(3)}
    effect, insert = statements
    assert "testapp_effect" in effect
    assert insert.startswith('INSERT INTO "reliable_jobs_job"')
    assert insert.endswith("\n; COMMIT") == can_join()
    assert kept() == sent(jobs) == ids


def test_jobs_of_several_tasks_are_one_insert_and_those_with_further_columns_another(jobs: InProcess) -> None:
    with said() as statements, transaction.atomic():
        ids = {tasks.effect.delay("plain").id, tasks.enqueues.delay("another task's").id}
        ids |= {tasks.effect.apply_async(("first",), priority=3).id, tasks.effect.apply_async(("2",), priority=4).id}
        ids |= {tasks.effect.delay("plain again").id}
    assert len(statements) == 3
    assert [text.endswith("COMMIT") for text in statements] == [False, False, can_join()]
    assert kept() == sent(jobs) == ids
    assert sorted(Job.objects.values_list("priority", flat=True), key=str) == [3, 4, None, None, None]


def test_a_transaction_holds_a_bounded_number_of_rows(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "MOST", 4)
    with said() as statements, transaction.atomic():
        for n in range(10):
            tasks.effect.delay(str(n))
    assert len(statements) == 3
    assert Job.objects.count() == 10


def test_the_times_of_a_delayed_job_count_from_the_call(jobs: InProcess) -> None:
    with said() as statements, transaction.atomic():
        tasks.effect.apply_async(("later",), countdown=60)
        tasks.effect.apply_async(("soon",), expires=60)
        assert len(connection.queries) >= 2
    assert len(statements) == 2


# --- nobody can tell ------------------------------------------------------------------------------------------------


def test_the_transactions_next_statement_finds_the_row(jobs: InProcess) -> None:
    with transaction.atomic():
        result = tasks.effect.delay("x")
        assert Job.objects.filter(pk=result.id).exists()
        assert result.state == "PENDING"


def test_a_savepoint_of_djangos_or_of_ones_own_takes_along_what_was_not_written(jobs: InProcess) -> None:
    with transaction.atomic():
        ids = {tasks.effect.delay("kept").id}
        with contextlib.suppress(Undo), transaction.atomic():
            tasks.effect.delay("phantom")
            raise Undo
        mine = transaction.savepoint()
        tasks.effect.delay("phantom")
        transaction.savepoint_rollback(mine)
        ids |= {tasks.effect.delay("kept too").id}
        raw = connection.cursor()
        raw.execute("SAVEPOINT by_hand")
        tasks.effect.delay("phantom")
        raw.execute("rollback to by_hand")
    assert kept() == sent(jobs) == ids


def test_a_savepoint_can_be_rolled_back_after_an_error_that_django_has_not_seen(jobs: InProcess) -> None:
    """The rows can't be written any more then, and must not keep the ROLLBACK from being said."""
    with transaction.atomic():
        ids = {tasks.effect.delay("kept").id}
        with contextlib.suppress(Undo), transaction.atomic():
            with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
                cursor.execute("SELECT no_such_column")
            tasks.effect.delay("phantom")
            raise Undo
        Effect.objects.create(name="order")
    assert kept() == sent(jobs) == ids
    assert jobs.effects("order") == 1


def test_nothing_is_taken_in_a_transaction_that_is_broken(jobs: InProcess) -> None:
    Parent.objects.create(name="taken")
    with contextlib.suppress(TransactionManagementError), transaction.atomic():
        with contextlib.suppress(IntegrityError):
            Parent.objects.create(name="taken")
        with pytest.raises(TransactionManagementError, match="can't execute queries"):
            tasks.effect.delay("phantom")
    assert (kept(), sent(jobs)) == (set(), set())


def test_a_transaction_that_is_to_be_rolled_back_takes_its_rows_along(jobs: InProcess) -> None:
    with transaction.atomic():
        tasks.effect.delay("phantom")
        transaction.set_rollback(True)
    with transaction.atomic():
        result = tasks.effect.delay("kept")
    assert kept() == sent(jobs) == {result.id}


def test_wrappers_around_statements_come_and_go_as_before(jobs: InProcess) -> None:
    seen: list[str] = []

    def see(execute: Any, sql: str, *rest: Any) -> Any:
        seen.append(sql)
        return execute(sql, *rest)

    with transaction.atomic():
        with connection.execute_wrapper(see):
            tasks.effect.delay("x")
            Effect.objects.create(name="order")
        assert see not in connection.execute_wrappers
        tasks.effect.delay("y")
    assert len(seen) == 2, "the user's wrapper sees the outbox's statements too"
    assert Job.objects.count() == 2


def test_a_wrapper_that_refuses_a_statement_loses_no_row(jobs: InProcess) -> None:
    def refuse(*statement: Any) -> Any:
        raise Undo

    with transaction.atomic():
        result = tasks.effect.delay("x")
        with pytest.raises(Undo), connection.execute_wrapper(refuse):
            Effect.objects.exists()
    assert kept() == sent(jobs) == {result.id}


# --- the COMMIT -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def a_table_that_refuses(condition: str) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE reliable_jobs_job ADD CONSTRAINT refused CHECK (NOT {condition})")
    yield
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE reliable_jobs_job DROP CONSTRAINT refused")


def test_a_row_that_is_refused_with_the_commit_undoes_the_transaction(jobs: InProcess) -> None:
    if connection.vendor != "postgresql":
        return  # SQLite can't add a constraint to a table
    with a_table_that_refuses("queue = 'refused'"):
        with pytest.raises(IntegrityError, match="refused"), transaction.atomic():
            Effect.objects.create(name="order")
            tasks.effect.delay("phantom")
            tasks.effect.apply_async(("phantom",), queue="refused")
        assert (kept(), sent(jobs), jobs.effects("order")) == (set(), set(), 0)
        with transaction.atomic():
            Effect.objects.create(name="next order")
            result = tasks.effect.delay("next")
    assert kept() == sent(jobs) == {result.id}


def test_a_wrapper_that_refuses_the_last_insert_undoes_the_transaction(jobs: InProcess) -> None:
    def refuse(execute: Any, sql: str, *rest: Any) -> Any:
        if "reliable_jobs_job" in sql:
            raise Undo
        return execute(sql, *rest)

    with pytest.raises(Undo), connection.execute_wrapper(refuse), transaction.atomic():
        Effect.objects.create(name="order")
        tasks.effect.delay("phantom")
    assert connection.get_autocommit()
    assert (kept(), sent(jobs), jobs.effects("order")) == (set(), set(), 0)


def test_a_wrapper_that_changes_the_insert_keeps_the_commit_out_of_it(jobs: InProcess) -> None:
    def comment(execute: Any, sql: str, *rest: Any) -> Any:
        return execute(f"{sql} -- from a view", *rest)

    with connection.execute_wrapper(comment), said() as statements, transaction.atomic():
        result = tasks.effect.delay("x")
    assert not any("COMMIT" in text for text in statements)
    assert kept() == sent(jobs) == {result.id}


def test_a_commit_inside_a_block_is_refused_as_ever(jobs: InProcess) -> None:
    with transaction.atomic():
        result = tasks.effect.delay("x")
        with pytest.raises(TransactionManagementError):
            transaction.commit()
    assert kept() == sent(jobs) == {result.id}


def test_where_a_tool_puts_functions_of_its_own_among_the_hooks_the_row_is_written_at_once(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = connections["default"]
    on_commit = wrapper.on_commit
    monkeypatch.setattr(wrapper, "on_commit", lambda func, robust=False: on_commit(lambda: func(), robust))
    with transaction.atomic():
        with said() as statements:
            ids = {tasks.effect.delay("x").id, tasks.effect.delay("y").id}
        assert len(statements) == 2
    assert kept() == sent(jobs) == ids


def test_a_rolled_back_row_that_somebody_still_holds_does_not_come_out_with_the_next_transaction(
    jobs: InProcess,
) -> None:
    with pytest.raises(Undo) as undone, transaction.atomic():
        tasks.effect.delay("phantom")
        (held,) = [hook for _, hook, _ in connection.run_on_commit]
        raise Undo
    assert [undone, held]
    with transaction.atomic():
        result = tasks.effect.delay("kept")
    assert kept() == sent(jobs) == {result.id}


# --- bodies and test cases ------------------------------------------------------------------------------------------


@pytest.mark.promise("I3")
def test_a_row_that_is_refused_is_the_failure_of_the_body_that_enqueued_it(jobs: InProcess) -> None:
    if connection.vendor != "postgresql":
        return
    with a_table_that_refuses(f"task = '{tasks.effect.name}'"):
        job = jobs.run(tasks.enqueues, "refused")
    assert (job.status, job.attempt) == ("failed", 1)
    assert "IntegrityError" in job.traceback


@override_dispatch()
class InATestCase(TestCase):
    def test_a_call_outside_of_a_block_is_written_at_once_as_in_autocommit(self) -> None:
        with self.assertNumQueries(1):
            tasks.effect.delay("x")

    def test_a_hook_that_is_run_without_a_commit_writes_its_row(self) -> None:
        with said() as statements, transaction.atomic(savepoint=False), self.captureOnCommitCallbacks(execute=True):
            tasks.effect.delay("x")
        assert ["INSERT" in text for text in statements].count(True) == 1
        assert Job.objects.count() == 1
