"""Statements that travel together, and those that PostgreSQL keeps ready."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from reliable_jobs import ReliableTask, joined
from reliable_jobs.models import Job
from tests import inprocess
from tests.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs
pytestmark = pytest.mark.servers
SEEN: list[Any] = []


@shared_task(base=ReliableTask, name="test_joined.does")
def does(what: str = "") -> None:
    Effect.objects.create(name="done")
    if what == "looks":
        driver: Any = connection.connection
        SEEN.append((driver.autocommit, driver.info.transaction_status.name, connection.get_autocommit()))
        with transaction.atomic():
            list(Effect.objects.iterator())
            held = "SELECT count(*) FROM pg_cursors WHERE is_holdable"
            with connection.cursor() as cursor, connection.chunked_cursor() as open_cursor:
                open_cursor.execute("SELECT 1")
                cursor.execute(held)
                SEEN.append(cursor.fetchone()[0])
    if what == "forgets":
        with connection.cursor() as cursor:
            cursor.execute("DEALLOCATE ALL")
    if what == "its own":
        with connection.cursor() as cursor:
            cursor.execute("EXECUTE no_such_statement")
    if what == "fail":
        raise ValueError("no")


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch: pytest.MonkeyPatch, jobs: InProcess) -> Iterator[None]:
    monkeypatch.setattr(joined, "_given_up", set())
    SEEN.clear()
    connection.close()
    yield
    connection.close()


def statements(jobs: InProcess, what: str = "") -> list[str]:
    """What one run says to the database, without what Django notes of its own."""
    does.delay(what)
    (message,) = jobs.take()
    with CaptureQueriesContext(connection) as queries:
        jobs.deliver(message)
    return [query["sql"] for query in queries.captured_queries if query["sql"] not in (None, "BEGIN", "COMMIT")]


def prepared() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        return int(cursor.fetchone()[0])


def settled() -> list[str]:
    return sorted(Job.objects.values_list("status", flat=True))


# --- the transaction's beginning --------------------------------------------------------------------------------------


def test_the_begin_travels_with_the_claim(jobs: InProcess) -> None:
    claim, _body, settle, *_ = statements(jobs)
    assert claim.startswith("BEGIN\n; SELECT")
    assert settle.endswith("\n; COMMIT")


@pytest.mark.promise("I3")
def test_in_the_body_the_driver_is_as_in_any_transaction_of_djangos(jobs: InProcess) -> None:
    """Pins psycopg's ``_autocommit``: left on, ``iterator()`` would make cursors that outlive the transaction."""
    statements(jobs, "looks")
    assert SEEN == [(False, "INTRANS", False), 0]
    assert settled() == ["succeeded"]
    assert connection.connection.autocommit


@pytest.mark.promise("I3")
def test_a_begin_that_says_more_is_left_to_the_driver(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    from psycopg import IsolationLevel

    connection.ensure_connection()
    connection.connection.isolation_level = IsolationLevel.REPEATABLE_READ
    assert statements(jobs)[0].startswith("SELECT")
    assert settled() == ["succeeded"]


def _creates(execute: Any, context: Any) -> None:
    execute("CREATE TEMPORARY TABLE first_of_all () ON COMMIT DROP", None, False, context)


def _past_django(execute: Any, context: Any) -> None:
    connection.connection.execute("CREATE TEMPORARY TABLE first_of_all () ON COMMIT DROP")


def _iterates(execute: Any, context: Any) -> None:
    list(Effect.objects.iterator())
    _past_django(execute, context)


def _many(execute: Any, context: Any) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("SELECT %s", [(1,), (2,)])
    _past_django(execute, context)


@pytest.mark.promise("I3")
@pytest.mark.parametrize("says", [_creates, _past_django, _iterates, _many])
def test_a_first_statement_that_is_not_ours_is_in_the_transaction_too(jobs: InProcess, says: Any) -> None:
    """A wrapper of the user's may say something before the claim."""

    def first(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not SEEN:
            SEEN.append("said")
            says(execute, context)
        return execute(sql, params, many, context)

    does.delay("fail")
    (message,) = jobs.take()
    with connection.execute_wrapper(first):
        jobs.deliver(message)
    assert (settled(), Effect.objects.count(), SEEN) == (["failed"], 0, ["said"])
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('first_of_all')")
        assert cursor.fetchone() == (None,)


# --- prepared statements ----------------------------------------------------------------------------------------------


def test_what_a_session_is_asked_again_and_again_is_prepared(jobs: InProcess) -> None:
    texts = [statements(jobs) for _ in range(3)]
    assert not any("EXECUTE" in text for said in texts[:2] for text in said)
    claim, _body, settle, *_ = texts[2]
    assert claim.startswith("BEGIN\n; EXECUTE reliable_jobs_")
    assert "\n; EXECUTE reliable_jobs_" in settle
    assert prepared() == 2
    assert (settled(), Effect.objects.count()) == (["succeeded"] * 3, 3)


def test_a_new_session_begins_anew(jobs: InProcess) -> None:
    for _ in range(4):
        said = statements(jobs)
        connection.close()
        assert not any("EXECUTE" in text for text in said)


@pytest.mark.promise("I4")
def test_a_prepared_settlement_whose_fence_does_not_hold_commits_nothing(jobs: InProcess) -> None:
    for _ in range(3):
        statements(jobs)
    assert prepared() == 2

    def settles_itself(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("INSERT") and not SEEN:
            SEEN.append("settled")
            execute('UPDATE "reliable_jobs_job" SET epoch = 99', None, False, context)
        return execute(sql, params, many, context)

    does.delay()
    (message,) = jobs.take()
    with connection.execute_wrapper(settles_itself):
        jobs.deliver(message)
    assert (settled(), Effect.objects.count()) == (["succeeded"] * 3 + ["waiting"], 3)


def test_not_behind_a_pooler_that_django_knows_of(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    for _ in range(4):
        statements(jobs)
    assert prepared() == 0


@pytest.mark.promise("I5")
def test_a_pooler_that_hides_them_costs_one_look_and_no_attempt(
    jobs: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        statements(jobs)
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")  # as the next transaction finds it that gets another session
    with caplog.at_level(logging.INFO, "reliable_jobs.execution"):
        said = statements(jobs)
    assert "EXECUTE" not in said[-2]
    assert "not prepared on database 'default' any more" in caplog.text
    assert set(Job.objects.values_list("status", "interruptions", "attempt")) == {("succeeded", 0, 0)}
    statements(jobs)
    assert prepared() == 0
    assert Effect.objects.count() == 5


@pytest.mark.promise("I3", "I5")
def test_one_that_is_gone_at_the_settlement_costs_an_interruption(jobs: InProcess) -> None:
    for _ in range(3):
        statements(jobs)
    does.delay("forgets")
    (message,) = jobs.take()
    jobs.deliver(message)
    job = Job.objects.exclude(status="succeeded").get()
    assert (job.status, job.interruptions, job.attempt) == ("waiting", 1, 0)
    assert Effect.objects.count() == 3
    Job.objects.update(due_at=timezone.now())
    jobs.finish()
    assert Effect.objects.count() == 4


@pytest.mark.promise("I6")
def test_a_body_whose_own_statement_is_missing_has_failed(jobs: InProcess) -> None:
    for _ in range(3):
        statements(jobs)
    job = jobs.run(does, "its own")
    assert (job.status, job.attempt, job.interruptions) == ("failed", 1, 0)
    statements(jobs)
    assert prepared() == 2


@pytest.mark.promise("I10")
def test_plans_are_made_anew_for_a_table_that_has_grown(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was made for a small table read the whole of a large one, until autovacuum came round."""
    said = [statements(jobs)[0] for _ in range(4)]
    assert not any("DISCARD" in text for text in said)
    monkeypatch.setattr(joined, "_PLAN_AGE", 0.0)
    assert statements(jobs)[0].startswith("DISCARD PLANS\n; BEGIN\n; EXECUTE")
    assert settled() == ["succeeded"] * 5


@pytest.mark.promise("I5")
def test_a_migration_under_prepared_statements_costs_one_look(jobs: InProcess) -> None:
    def resize(size: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE reliable_jobs_job ALTER COLUMN task TYPE varchar({size})")

    for _ in range(3):
        statements(jobs)
    resize(300)
    try:
        statements(jobs)
        assert set(Job.objects.values_list("status", "interruptions", "attempt")) == {("succeeded", 0, 0)}
        assert Effect.objects.count() == 4
    finally:
        resize(255)


def test_a_lock_that_is_in_the_way_is_tried_again_and_a_time_limit_is_passed_on(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements(jobs)
    statements(jobs)
    driver: Any = connection.connection
    refused = driver.OperationalError("canceling statement due to lock timeout")
    monkeypatch.setattr(driver, "execute", mock.Mock(side_effect=[refused, SoftTimeLimitExceeded]), raising=False)
    joined.prepare(connection)
    with pytest.raises(SoftTimeLimitExceeded):
        joined.prepare(connection)
    monkeypatch.undo()
    assert driver.autocommit
    statements(jobs)
    assert prepared() == 2


def test_texts_that_are_not_asked_twice_keep_no_others_out(jobs: InProcess) -> None:
    def comments(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        return execute(f"/* {uuid.uuid4()} */ {sql}", params, many, context)

    with connection.execute_wrapper(comments):
        for _ in range(joined._MOST):
            statements(jobs)
    for _ in range(3):
        statements(jobs)
    assert prepared() == 2
    assert len(joined._sessions[connection.connection].uses) <= joined._MOST


def test_a_name_that_is_taken_leaves_them_unprepared(jobs: InProcess) -> None:
    """A pooler's session that another client has prepared them on."""
    statements(jobs)
    statements(jobs)
    session = joined._sessions[connection.connection]
    name = joined._name(next(sql for sql, uses in session.uses.items() if uses == 2))
    with connection.cursor() as cursor:
        cursor.execute(f"PREPARE {name} AS SELECT 1")
    said = statements(jobs)
    assert not any("EXECUTE" in text for text in said)
    assert settled() == ["succeeded"] * 3


@pytest.mark.promise("I5")
def test_a_lost_connection_is_no_reason_to_prepare_nothing_any_more(jobs: InProcess) -> None:
    statements(jobs)
    statements(jobs)
    does.delay()
    (message,) = jobs.take()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    other.close()
    jobs.deliver(message)
    for _ in range(3):
        statements(jobs)
    assert prepared() == 2
    assert settled() == ["succeeded"] * 6


@pytest.mark.parametrize(
    ("sql", "numbered"),
    [
        ("SELECT %s, %s", "SELECT $1, $2"),
        ("SELECT 1", "SELECT 1"),
        ("a LIKE 'x%%' AND b = %s", "a LIKE 'x%' AND b = $1"),
        ("%%s %s", "%s $1"),
    ],
)
def test_placeholders_are_numbered(sql: str, numbered: str) -> None:
    assert joined._numbered(sql) == numbered
