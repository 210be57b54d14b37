"""Which SQL texts end the transaction: by our tokenizer, and by a PostgreSQL server."""

from __future__ import annotations

import itertools
import sqlite3
import time

import pytest
from django.db import connection

from reliable_jobs.run.sql_words import ends_transaction

#: Expressions that hold what only looks like the end of a literal, of a comment or of the transaction.
EXPRESSIONS = (
    "'--'",
    "'/*'",
    "'it''s; COMMIT'",
    "'\\'",
    r"E'\'; COMMIT --'",
    r"e'\\'",
    "E'a'\n'\\'; COMMIT /*'",
    "$$ ; COMMIT ' $$",
    "$a$ $$ ; COMMIT -- $b$ $a$",
    "$é1$ ; COMMIT $é1$",
    '1 AS "; COMMIT "" \'"',
    "1 AS a$$",
    "/* ; /* nested ' */ COMMIT */ 1",
    "-- ; COMMIT ' $$\n 1",
    "U&'; COMMIT '",
    "'a' -- ' $$\n '; COMMIT'",
    "2 - -1",
)
#: Second statements, and whether they end the transaction.
STATEMENTS = (
    ("", False),
    ("; COMMIT", True),
    (" ; /* x */ -- y\n commit work", True),
    (";END", True),
    ("; ABORT TRANSACTION", True),
    ("; ROLLBACK", True),
    ("; ROLLBACK WORK", True),
    ("; ROLLBACK/**/TO s", False),
    ("; rollback transaction to savepoint s", False),
    ("; SELECT 1 AS \"commit\", 'END'", False),
    ("; SELECT CASE WHEN true THEN 1 END", False),
)
TEXTS = tuple(
    (f"SELECT {expression}{statement}", ends)
    for expression, (statement, ends) in itertools.product(EXPRESSIONS, STATEMENTS)
)


@pytest.mark.servers
@pytest.mark.promise("I3")
def test_b12_texts_are_read_as_the_server_reads_them(transactional_db: None) -> None:
    for text, ends in TEXTS:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN; SELECT set_config('test.marker', 'set', true); SAVEPOINT s")
            cursor.execute(text.replace("%", "%%"))
            cursor.execute("SELECT current_setting('test.marker', true)")
            assert (cursor.fetchone() != ("set",)) == ends, text
            if not ends:
                cursor.execute("ROLLBACK")
        assert ends_transaction(text, "postgresql") == ends, text


@pytest.mark.parametrize(
    "text",
    [
        "PREPARE TRANSACTION 'x'",
        "prepare/* */transaction 'x'",
        "COMMIT",
        "\n;;END",
        "SELECT $1; COMMIT",
        "SELECT 1e1;END",
    ],
)
def test_other_ends_of_a_transaction(text: str) -> None:
    assert ends_transaction(text, "postgresql")


@pytest.mark.parametrize("text", ["", "PREPARE x AS SELECT 1", "/* COMMIT", "SELECT ' COMMIT", "SELECT $$; COMMIT"])
def test_what_does_not_end_one(text: str) -> None:
    assert not ends_transaction(text, "postgresql")


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("SELECT 1; /* /* */ COMMIT", True),
        ("SELECT '\\'; COMMIT", True),
        ("SELECT 1 AS [; COMMIT ']", False),
        ("SELECT 1 AS `; COMMIT '`", False),
        ("SELECT 1 AS [it's]; COMMIT", True),
        ("SELECT '; COMMIT'", False),
    ],
)
def test_b12_texts_are_read_as_sqlite_reads_them(text: str, ends: bool) -> None:
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute("BEGIN")
    for statement in split(text):
        database.execute(statement)
    assert database.in_transaction is not ends
    assert ends_transaction(text, "sqlite") == ends
    database.close()


def split(text: str) -> list[str]:
    """Into statements, by SQLite itself."""
    statements, start = [], 0
    for at, character in enumerate(text):
        if character == ";" and sqlite3.complete_statement(text[start : at + 1]):
            statements.append(text[start : at + 1])
            start = at + 1
    return [*statements, text[start:]]


def test_b12_a_long_text_takes_no_longer_than_its_length() -> None:
    literal = "'" + "x''" * 200_000 + "'"
    started = time.process_time()
    assert ends_transaction(f"SELECT {literal}, {literal}; COMMIT", "postgresql")
    assert not ends_transaction("SELECT " + "E'\\" * 50_000 + " END", "postgresql")
    assert time.process_time() - started < 1
