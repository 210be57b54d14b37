"""Errors told apart, with errors that databases really raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.transaction import TransactionManagementError

from reliable_jobs.lifecycle import db_errors
from tests.support.harness import Stack, Transaction
from tests.support.inprocess import extra_database
from tests.testapp.models import Parent


def caught(statement: str, params: list[object] | None = None) -> DatabaseError:
    with pytest.raises((DatabaseError, InterfaceError)) as error, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, params)
    return error.value


@pytest.mark.parametrize("error", [ValueError("x"), TimeoutError(), ConnectionError("broker"), ValidationError("x")])
def test_what_no_database_raised_is_the_bodys_own(error: Exception) -> None:
    assert not db_errors.is_transient(error, "default")


@pytest.mark.parametrize(("attribute", "state"), [("sqlstate", "40001"), ("pgcode", "40001"), ("pgcode", "25006")])
def test_a13_both_drivers_sqlstates_are_read(attribute: str, state: str) -> None:
    error = OperationalError("x")
    error.__cause__ = type("DriverError", (Exception,), {attribute: state})()
    assert db_errors.sqlstate(error) == state
    assert db_errors.sqlstate(OperationalError("x")) is None


@pytest.mark.servers
@pytest.mark.promise("I5")
def test_a_conversation_out_of_step_is_the_databases_trouble(stack: Stack) -> None:
    """Seed 1 behind PgBouncer: a server that went read-only ended the session, and PgBouncer told of it too."""
    connection.ensure_connection()
    driver: Any = connection.connection
    with pytest.raises(InternalError, match="received 2 results") as error, connection.wrap_database_errors:
        driver.wait(driver._exec_command(b"SELECT 1; SELECT 1"))
    assert db_errors.is_transient(error.value, "default")


@pytest.mark.django_db
def test_a_duplicate_is_the_bodys_own() -> None:
    Parent.objects.create(name="one")
    with pytest.raises(IntegrityError) as error, transaction.atomic():
        Parent.objects.create(name="one")
    assert not db_errors.is_transient(error.value, "default")


@pytest.mark.django_db
def test_a_wrong_statement_is_the_bodys_own() -> None:
    assert not db_errors.is_transient(caught("SELECT * FROM no_such_table"), "default")


@pytest.mark.django_db(transaction=True)
def test_a_locked_sqlite_file_is_the_databases_trouble(tmp_path: Path) -> None:
    with extra_database("locked", tmp_path / "locked", timeout=0.05) as alias, transaction.atomic(using=alias):
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE t (x)")
        other = connections[alias].copy("the same file")
        with pytest.raises(OperationalError) as error, other.cursor() as cursor:
            cursor.execute("CREATE TABLE u (x)")
        other.close()
        assert db_errors.is_transient(error.value, alias)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("statement", "transient"),
    [
        ("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", True),
        ("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$", True),
        ("DO $$ BEGIN RAISE SQLSTATE '53300'; END $$", True),
        ("DO $$ BEGIN RAISE SQLSTATE '08006'; END $$", True),
        ("DO $$ BEGIN RAISE SQLSTATE '57P01'; END $$", True),
        ("DO $$ BEGIN RAISE SQLSTATE '57P03'; END $$", True),
        ("SELECT pg_terminate_backend(pg_backend_pid())", True),
        ("SELECT 1/0", False),
        ("SET LOCAL statement_timeout = 20; SELECT pg_sleep(5)", False),
        ("DO $$ BEGIN RAISE SQLSTATE '55P03'; END $$", False),
        ("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$", True),
        ("DO $$ BEGIN RAISE SQLSTATE '25006'; END $$", True),
        ("DO $$ BEGIN RAISE SQLSTATE '53200'; END $$", False),
    ],
)
def test_the_sqlstate_tells_whose_trouble_it_is(stack: Stack, statement: str, transient: bool) -> None:
    error = caught(statement)
    connection.close()
    assert db_errors.is_transient(error, "default") == transient


@pytest.mark.servers
def test_a_server_that_refuses_is_the_databases_trouble(stack: Stack) -> None:
    connection.close()
    before = connection.settings_dict["PORT"]
    connection.settings_dict["PORT"] = 1
    try:
        with pytest.raises(OperationalError) as error:
            connection.ensure_connection()
        assert db_errors.sqlstate(error.value) is None
        assert db_errors.is_transient(error.value, "default")
    finally:
        connection.settings_dict["PORT"] = before


@pytest.mark.servers
def test_a_lock_timeout_is_the_bodys_own_and_a_deadlock_is_not(stack: Stack) -> None:
    row = Parent.objects.create(name="first")
    held = Transaction(lambda: Parent.objects.select_for_update().get(pk=row.pk))
    with pytest.raises(OperationalError) as error, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = 50")
        Parent.objects.select_for_update().get(pk=row.pk)
    held.end()
    assert not db_errors.is_conflict(error.value, "default")
    assert not db_errors.is_transient(error.value, "default")
    assert db_errors.is_conflict(caught("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$"), "default")


def test_an_integrity_error_is_no_conflict() -> None:
    assert not db_errors.is_conflict(IntegrityError("x"), "default")
    assert not db_errors.is_conflict(ValueError(), "default")


@pytest.mark.django_db
def test_a_broken_transaction_gets_advice() -> None:
    with pytest.raises(TransactionManagementError) as error, transaction.atomic():
        try:
            with transaction.atomic(savepoint=False):
                raise ValueError
        except ValueError:
            pass
        Parent.objects.create(name="after")
    text = db_errors.describe(error.value)
    assert "savepoint" in text
    assert "atomic = False" in text


@pytest.mark.django_db(transaction=True)
def test_a_durable_block_inside_a_body_gets_advice() -> None:
    with pytest.raises(RuntimeError) as error, transaction.atomic(), transaction.atomic(durable=True):
        pass
    assert "self.fenced()" in db_errors.describe(error.value)


def test_an_ordinary_error_gets_none() -> None:
    assert db_errors.describe(ValueError("no")) == "ValueError: no"
    assert db_errors.describe(ValueError()) == "ValueError"


def test_the_trace_shows_the_cause() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        text = db_errors.trace(error)
    assert "KeyError: 'inner'" in text
    assert "ValueError: outer" in text


def test_a_secret_is_taken_out_however_it_was_printed() -> None:
    text = "no user 'hunter2' with hunter2 and [1, 2, 3]"
    assert db_errors.redact(text, ["hunter2", [1, 2, 3]]) == "no user [hidden] with [hidden] and [hidden]"


def test_a_secret_that_holds_a_shorter_one_is_taken_out_whole() -> None:
    assert db_errors.redact("token abc-def-ghi", ["abc", "abc-def-ghi"]) == "token [hidden]"


def test_a_secret_of_one_letter_does_not_blank_the_text() -> None:
    assert db_errors.redact("a text", ["a", "", None, 1]) == "a text"


@pytest.mark.parametrize("secret", ["pass\nword", "pässwörd", 'it\'s "quoted"'])
def test_a_secret_with_odd_letters_is_taken_out_in_both_forms(secret: str) -> None:
    text = f"plain {secret} and repr {secret!r}"
    assert db_errors.redact(text, [secret]) == "plain [hidden] and repr [hidden]"


def test_the_parts_of_a_secret_dict_are_secrets_too() -> None:
    """An error rarely prints the whole dict: it prints the value that was wrong."""
    assert "4111111111111111" not in db_errors.redact(
        "card 4111111111111111 was refused", [{"card": "4111111111111111", "name": "Ann"}]
    )
