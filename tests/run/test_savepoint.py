"""The statements of a run: how many round trips they make, and that an error in a joined one is told apart."""

from __future__ import annotations

from typing import Any

import pytest
from celery import shared_task
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from reliable_jobs import ReliableTask
from reliable_jobs.compat.django_transaction import OPENS_SAVEPOINT, RELEASES_SAVEPOINT
from reliable_jobs.models import Job
from reliable_jobs.run import round_trips
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Child, Effect

jobs = inprocess.jobs
HOOKS: list[str] = []


@shared_task(base=ReliableTask, name="test_savepoint.does")
def does(what: str = "") -> str:
    Effect.objects.create(name="done")
    if what == "deferred":
        transaction.on_commit(lambda: HOOKS.append("of a failed body"))
        does.delay()
        Child.objects.create(parent_id=10**9)
    if what == "roll back":
        transaction.set_rollback(True)
    if what == "settles itself":
        Job.objects.filter(task=does.name).update(epoch=99)
    if what == "enqueues":
        does.delay()
    if what == "fail":
        raise ValueError("no")
    return "value"


def statements(jobs: InProcess, **options: Any) -> list[str]:
    does.apply_async(**options)
    (message,) = jobs.take()
    with CaptureQueriesContext(connection) as queries:
        jobs.deliver(message)
    # Django notes the BEGIN and COMMIT of atomic() too, and psycopg what nobody has executed as None.
    return [query["sql"] for query in queries.captured_queries if query["sql"] not in (None, "BEGIN", "COMMIT")]


def can_join() -> bool:
    connection.ensure_connection()
    return round_trips.can_join(connection)


def test_a_run_makes_three_round_trips_where_statements_travel_together(jobs: InProcess) -> None:
    said = statements(jobs)
    if connection.vendor == "postgresql":
        claim, body, settle, *_result_backend = said
        assert "FOR NO KEY UPDATE SKIP LOCKED\n; SAVEPOINT" in claim
        assert body.startswith("INSERT")
        assert settle.startswith("SET CONSTRAINTS ALL IMMEDIATE\n; RELEASE SAVEPOINT")
        assert settle.endswith("\n; COMMIT")
    else:
        assert not can_join()
    assert Job.objects.get().status == "succeeded"
    assert Effect.objects.count() == 1


def test_a_cursor_factory_that_is_a_function_is_not_joined(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a library that watches cursors may set it."""
    if not can_join():
        pytest.skip("statements do not travel together here")
    factory = connection.connection.cursor_factory
    monkeypatch.setattr(connection.connection, "cursor_factory", lambda *args, **kwargs: factory(*args, **kwargs))
    said = statements(jobs)
    assert len(said) > 3
    assert Job.objects.get().status == "succeeded"


def test_the_commit_waits_while_there_is_more_to_write(jobs: InProcess) -> None:
    said = statements(jobs, link=does.si())
    assert not any(text.endswith("COMMIT") for text in said)
    assert sorted(Job.objects.values_list("status", flat=True)) == ["succeeded", "waiting"]


@pytest.mark.promise("I3")
def test_a_deferred_constraint_fails_the_function_with_its_hooks_and_jobs(jobs: InProcess) -> None:
    if connection.vendor == "sqlite":
        return  # its deferred constraints fail at the COMMIT: see test_promise_3
    HOOKS.clear()
    job = jobs.run(does, "deferred")
    assert (job.status, job.failures) == ("failed", 1)
    assert "IntegrityError" in job.error
    assert (Effect.objects.count(), Job.objects.count(), HOOKS) == (0, 1, [])
    assert not connection.in_atomic_block


@pytest.mark.promise("I4")
def test_a_settlement_whose_fence_does_not_hold_commits_nothing(jobs: InProcess) -> None:
    job = jobs.run(does, "settles itself")
    assert (job.status, job.epoch) == ("waiting", 0)
    assert Effect.objects.count() == 0
    assert not connection.in_atomic_block


def test_a_body_that_asks_for_a_rollback_is_rolled_back_and_done(jobs: InProcess) -> None:
    job = jobs.run(does, "roll back")
    assert (job.status, Effect.objects.count()) == ("succeeded", 0)


def _comments(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    return execute(f"/* first */ {sql}; -- last", params, many, context)


def _asks_first(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    if sql.startswith(("SELECT", "UPDATE")):
        execute("SELECT 1", None, False, context)
    return execute(sql, params, many, context)


def _spoils(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    return execute(sql.replace('"reliable_jobs_job"', "reliable_jobs_job"), params, many, context)


@pytest.mark.promise("I3")
@pytest.mark.parametrize("wrapper", [_comments, _asks_first, _spoils])
@pytest.mark.parametrize(("what", "status", "effects"), [("", "succeeded", 1), ("fail", "failed", 0)])
def test_wrappers_of_the_users_own_around_every_statement(
    jobs: InProcess, wrapper: Any, what: str, status: str, effects: int
) -> None:
    does.delay(what)
    (message,) = jobs.take()
    with connection.execute_wrapper(wrapper):
        jobs.deliver(message)
    job = Job.objects.get()
    assert (job.status, Effect.objects.count()) == (status, effects), job.error


@pytest.mark.parametrize("what", ["", "deferred", "settles itself", "roll back", "enqueues"])
def test_one_by_one_the_statements_come_to_the_same(
    jobs: InProcess, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_trips, "can_join", lambda connection: False)
    if what == "deferred" and connection.vendor == "sqlite":
        return  # as above
    expected: dict[str, Any] = {
        "deferred": ("failed", 0),
        "settles itself": ("waiting", 0),
        "roll back": ("succeeded", 0),
    }
    job = jobs.run(does, what)
    assert (job.status, Effect.objects.count()) == expected.get(what, ("succeeded", 1))


def test_django_still_makes_savepoints_by_the_methods_put_aside(jobs: InProcess) -> None:
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        aside = (
            round_trips.savepoint_names(connection, OPENS_SAVEPOINT),
            round_trips.savepoint_names(connection, RELEASES_SAVEPOINT),
        )
        with aside[0] as made, aside[1] as gone, transaction.atomic():
            assert not gone
        assert made == gone
        assert len(queries) == 0
        with transaction.atomic():
            assert len(queries) == 1
        assert len(queries) == 2


def test_a_backend_without_savepoints_runs_jobs_by_single_statements(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.features, "uses_savepoints", False)
    assert jobs.run(does).status == "succeeded"


def test_a_method_that_somebody_has_put_on_the_connection_is_put_back(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = connections["default"]
    mine = wrapper._savepoint
    monkeypatch.setattr(wrapper, "_savepoint", mine)
    assert jobs.run(does).status == "succeeded"
    assert vars(wrapper)["_savepoint"] is mine
