"""Statements that travel together, and what happens where they can't."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chord, shared_task
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from psycopg import ClientCursor, errors

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job
from reliable_jobs.run import joined
from reliable_jobs.workflow import looks as looks_module
from tests.support import inprocess
from tests.support.harness import Transaction
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect
from tests.workflow.chords import body, part

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
    if what == "fail":
        raise ValueError("no")


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch: pytest.MonkeyPatch, jobs: InProcess) -> Iterator[None]:
    monkeypatch.setattr(joined, "switched_off", set())
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


def settled() -> list[str]:
    return sorted(Job.objects.values_list("status", flat=True))


# --- the look behind the commit ---------------------------------------------------------------------------------------


def parts_of_a_chord(jobs: InProcess) -> list[Any]:
    chord([part.s(1), part.s(2)], body.s()).apply_async()
    return jobs.take()


def looks(queries: CaptureQueriesContext) -> list[str]:
    """The statements of a run that look for other parts of its group."""
    return [query["sql"] for query in queries.captured_queries if "AS unfinished" in str(query["sql"])]


@pytest.mark.promise("I2")
def test_the_look_for_other_parts_travels_behind_the_commit(jobs: InProcess) -> None:
    for number, message in enumerate(parts_of_a_chord(jobs)):
        with CaptureQueriesContext(connection) as queries:
            jobs.deliver(message)
        (look,) = looks(queries)
        assert "\n; COMMIT\n; SELECT count(*) FROM" in look
        assert Job.objects.filter(task=body.name).count() == number
    jobs.work()
    assert jobs.effects("body [1, 2]") == 1


@pytest.mark.promise("I2")
def test_the_look_behind_the_commit_sees_what_others_commit_before_it(jobs: InProcess) -> None:
    """The other last part commits while this one runs: in the snapshot of this one's transaction it is unfinished,
    behind the COMMIT it is not."""
    first, second = parts_of_a_chord(jobs)
    jobs.deliver(first)
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    Job.objects.filter(pk=first.headers["id"]).update(status="waiting")

    def end_the_other(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "SET status = 'succeeded'" in sql:
            in_other_session(lambda: Job.objects.filter(pk=first.headers["id"]).update(status="succeeded"))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(end_the_other):
        jobs.deliver(second)
    assert Job.objects.filter(task=body.name).count() == 1


def in_other_session(work: Any) -> None:
    session = Transaction(work)
    session.end()


@pytest.mark.promise("I2")
@pytest.mark.parametrize("how", ["fails", "is cut off"])
def test_a_look_that_brings_no_answer_is_made_again(jobs: InProcess, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The part is settled by then: the row says so, and the group is looked at by a statement of its own."""
    broken = {
        "fails": "SELECT 'no answer'::integer",
        "is cut off": "SELECT pg_terminate_backend(pg_backend_pid())",
    }
    monkeypatch.setattr(looks_module, "behind_commit", lambda group_id, alias: broken[how])
    for message in parts_of_a_chord(jobs):
        jobs.deliver(message)
    assert settled() == ["succeeded", "succeeded", "waiting"]
    assert Effect.objects.filter(name__startswith="part").count() == 2
    jobs.work()
    assert jobs.effects("body [1, 2]") == 1


# --- the transaction's beginning --------------------------------------------------------------------------------------


def test_the_begin_travels_with_the_claim(jobs: InProcess) -> None:
    claim, _body, settle, *_ = statements(jobs)
    assert claim.startswith("BEGIN\n; /* each run */ SELECT")
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
    assert statements(jobs)[0].startswith("/* each run */ SELECT")
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


# --- where joining fails ----------------------------------------------------------------------------------------------


class _Refusing(ClientCursor[Any]):
    """A cursor of a server or proxy that takes one statement at a time."""

    refused = ""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(query, str) and ";" in query and self.refused in query:
            raise errors.SyntaxError("cannot insert multiple commands into a prepared statement")
        return super().execute(query, *args, **kwargs)


class _RefusingSettlements(_Refusing):
    refused = "RELEASE"


class _WithoutNextset(ClientCursor[Any]):
    """As a library that traces statements may wrap it."""

    @property
    def nextset(self) -> Any:
        raise AttributeError("nextset")


class _OneResult(ClientCursor[Any]):
    """As from a proxy that answers with the last statement's result."""

    def nextset(self) -> None:
        while super().nextset():
            pass


@pytest.mark.promise("I2", "I3")
@pytest.mark.parametrize("kind", [_Refusing, _WithoutNextset, _OneResult])
def test_a_claim_that_can_t_be_joined_is_made_by_plain_statements(
    jobs: InProcess, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    connection.ensure_connection()
    driver: Any = connection.connection
    driver.cursor_factory = kind
    statements(jobs)
    assert (settled(), Effect.objects.count()) == (["succeeded"], 1)
    assert caplog.text.count("From now on they are sent one by one") == 1
    assert set(Job.objects.values_list("failures", "crashes", "interruptions")) == {(0, 0, 0)}
    said = statements(jobs)
    assert not any("\n;" in text for text in said)
    assert settled() == ["succeeded"] * 2


@pytest.mark.promise("I2", "I3")
def test_a_settlement_that_can_t_be_joined_costs_one_interruption(jobs: InProcess) -> None:
    connection.ensure_connection()
    driver: Any = connection.connection
    driver.cursor_factory = _RefusingSettlements
    job = jobs.run(does)
    assert (job.status, job.reason, job.interruptions, Effect.objects.count()) == ("waiting", "interrupted", 1, 0)
    assert "statements can't be sent together" in job.error
    jobs.finish()
    assert (settled(), Effect.objects.count()) == (["succeeded"], 1)


class _Cancelled(ClientCursor[Any]):
    """Its first joined text hits ``statement_timeout``."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(query, str) and ";" in query and not SEEN:
            SEEN.append("cancelled")
            raise errors.QueryCanceled("canceling statement due to statement timeout")
        return super().execute(query, *args, **kwargs)


@pytest.mark.promise("I5")
def test_an_error_of_a_statement_does_not_switch_joining_off(jobs: InProcess) -> None:
    connection.ensure_connection()
    driver: Any = connection.connection
    driver.cursor_factory = _Cancelled
    statements(jobs)
    assert (settled(), SEEN) == (["succeeded"], ["cancelled"])
    assert any("\n;" in text for text in statements(jobs))
