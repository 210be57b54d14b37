"""reliable_jobs.testing.crash_at_every_statement: it passes what is exactly-once, and finds out what is not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from unittest import skipUnless

import pytest
from celery import shared_task
from django.db import NotSupportedError, connection, connections, transaction
from django.test import TransactionTestCase, override_settings

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job
from reliable_jobs.testing import crash_at_every_statement
from tests.support.harness import Stack
from tests.testapp.models import Effect, Parent
from tests.testapp.tasks import effect, fails, fails_first

_calls = itertools.count()


@shared_task(base=ReliableTask, ignore_result=True)
def careful(name: str) -> str:
    """Writes, looks, enqueues, uses a savepoint: all of it with the job's transaction."""
    parent, _ = Parent.objects.get_or_create(name=name)
    with transaction.atomic():
        Effect.objects.create(name=name, value="piece")
    effect.delay(f"{name} later")
    return parent.name


@shared_task(base=ReliableTask, ignore_result=True)
def by_another_connection(name: str) -> None:
    beside = connection.copy()
    try:
        with beside.cursor() as cursor:
            cursor.execute("INSERT INTO testapp_effect (name, value, at) VALUES (%s, '', now())", [name])
    finally:
        beside.close()
    Parent.objects.create(name=name)


@shared_task(base=ReliableTask, ignore_result=True)
def to_another_database(name: str) -> None:
    Effect.objects.using("audit").create(name=name)
    Parent.objects.create(name=name)


@shared_task(base=ReliableTask, atomic=False, ignore_result=True)
def not_atomic(name: str) -> None:
    Effect.objects.create(name=name)
    Parent.objects.get_or_create(name=name)


@shared_task(base=ReliableTask, atomic=False, ignore_result=True)
def looks_before_it_writes(name: str) -> None:
    Parent.objects.get_or_create(name=name)


@shared_task(base=ReliableTask, ignore_result=True)
def in_a_hook(name: str) -> None:
    transaction.on_commit(lambda: Effect.objects.create(name=name))


@shared_task(base=ReliableTask, ignore_result=True)
def never_ends() -> None:
    time.sleep(600)


# --- what is refused, and why -----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_on_sqlite_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "vendor", "sqlite", raising=False)
    with pytest.raises(NotSupportedError, match="needs PostgreSQL"):
        crash_at_every_statement(careful, ["x"], effects=[Effect])


@pytest.mark.django_db
def test_in_a_test_case_of_one_transaction_it_says_which_kind_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "vendor", "postgresql", raising=False)
    with pytest.raises(NotSupportedError, match=r"TransactionTestCase.*transactional_db"):
        crash_at_every_statement(careful, ["x"], effects=[Effect])


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(stack: Stack) -> Iterator[None]:
    """The default database is PostgreSQL, and whatever is done leaves no copy of it behind."""
    yield
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{stack.database_name[:40]}_copy_%"])
        assert cursor.fetchall() == []


servers = pytest.mark.servers


def by_the_body(where: str) -> bool:
    return "testapp" in where or "COMMIT" in where


@servers
@pytest.mark.promise("I3")
def test_an_atomic_task_passes_and_the_test_keeps_its_database(database: None) -> None:
    Effect.objects.create(name="set up by the test")
    report = crash_at_every_statement(careful, ["x"], effects=[Effect, Parent])
    assert {row["name"] for row in report.expected[0]} == {"set up by the test", "x", "x later"}
    killed_at = [step.where for step in report.steps]
    assert len(killed_at) > 10
    assert "before default: SAVEPOINT …" in killed_at
    assert killed_at.count("before default: COMMIT") == 1
    assert killed_at[-1] == "after default: COMMIT"
    assert str(report).count("exactly once") == len(report.steps)
    assert (Effect.objects.count(), Parent.objects.count(), Job.objects.count()) == (1, 0, 0)


@servers
def test_a_task_that_is_retried_passes(database: None) -> None:
    report = crash_at_every_statement(fails_first, ["x", 1], effects=[Effect], only=by_the_body)
    assert sorted(row["name"] for row in report.expected[0]) == ["x", "x-undone"]


@servers
def test_a_server_that_has_just_been_started_makes_no_difference(database: None, stack: Stack) -> None:
    # For a sweeper, which must spare the runs of clients that have not reconnected.
    with override_settings(RELIABLE_JOBS={**stack.settings, "LEASE": 10.0**7}):
        assert crash_at_every_statement(not_atomic, ["x"], effects=[Parent], only=by_the_body).steps


@servers
@pytest.mark.promise("I3")
def test_a_write_by_another_connection_is_found_out(database: None) -> None:
    with pytest.raises(AssertionError) as found:
        crash_at_every_statement(by_another_connection, ["x"], effects=[Effect, Parent], only=by_the_body)
    said = str(found.value)
    assert 'NOT EXACTLY ONCE  before default: INSERT INTO "testapp_parent"' in said
    assert "Written outside the job's transaction" in said
    assert "left by the killed run" in said
    assert said.count("Written outside") == 1, "once is enough"
    assert said.count("as above") == said.count("NOT EXACTLY ONCE") - 1


@servers
def test_a_write_to_another_database_is_found_out_and_named(database: None) -> None:
    connections.settings["audit"] = dict(connections.settings["default"])
    try:
        with pytest.raises(AssertionError, match="also writes to 'audit', which commits apart"):
            crash_at_every_statement(
                to_another_database, ["x"], effects=Effect.objects.filter(name="x"), only=by_the_body
            )
    finally:
        connections["audit"].close()
        del connections["audit"]
        del connections.settings["audit"]


@servers
def test_a_task_that_is_not_atomic_is_found_unless_it_looks_first(database: None) -> None:
    with pytest.raises(AssertionError, match="atomic = False") as found:
        crash_at_every_statement(not_atomic, ["x"], effects=[Effect, Parent], only=lambda where: "INSERT" in where)
    assert 'exactly once      before default: INSERT INTO "testapp_effect"' in str(found.value)
    crash_at_every_statement(looks_before_it_writes, ["x"], effects=[Parent], only=by_the_body)


@servers
def test_what_a_hook_behind_the_commit_does_is_lost_and_said_to_be(database: None) -> None:
    with pytest.raises(AssertionError, match="Killed after the job's transaction had been committed"):
        crash_at_every_statement(in_a_hook, ["x"], effects=Effect.objects.count, only=by_the_body)


@servers
def test_effects_that_are_never_the_same_are_told_from_a_crash(database: None) -> None:
    with pytest.raises(AssertionError, match="two undisturbed runs differ"):
        crash_at_every_statement(careful, ["x"], effects=lambda: next(_calls), only=by_the_body)


@servers
def test_a_task_that_fails_undisturbed_says_why(database: None) -> None:
    with pytest.raises(AssertionError, match=r"undisturbed, the job ends failed: ValueError: no x"):
        crash_at_every_statement(fails, ["x"], effects=[Effect])


@servers
def test_a_choice_that_chooses_nothing_passes_nothing(database: None) -> None:
    with pytest.raises(AssertionError, match="`only` chose none"):
        crash_at_every_statement(careful, ["x"], effects=[Effect], only=lambda where: "elsewhere" in where)


@servers
class InTransactionTestCase(TransactionTestCase):
    """As in an application: no stack, Django's own test database."""

    @skipUnless(connection.vendor == "postgresql", "the default database is not PostgreSQL")
    def test_a_method_of_djangos_test_case(self) -> None:
        crash_at_every_statement(effect, ["x"], effects=[Effect], only=lambda where: "COMMIT" in where)
        assert Effect.objects.count() == 0


@servers
def test_a_task_that_does_not_end_is_given_up(database: None) -> None:
    with pytest.raises(AssertionError, match="did not end within 1 s"):
        crash_at_every_statement(never_ends, effects=[Effect], timeout=1)
