"""The database's clock in the model's hands.

Every time in a row is the database's: ``STATEMENT_TIMESTAMP()``, and ``clock_timestamp()`` for the rescue. A schema
before pg_catalog in the search path has functions of these names that read a table; so the time stands still until the
model moves it, for every session and within open transactions too, and the code under test is what it always is.
"""

from __future__ import annotations

import psycopg

_SCHEMA = """
CREATE SCHEMA model_clock;
CREATE TABLE model_clock.clock (at timestamptz NOT NULL);
INSERT INTO model_clock.clock VALUES ('2040-01-01 12:00:00+00');
CREATE FUNCTION model_clock.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
    AS 'SELECT at FROM model_clock.clock';
CREATE FUNCTION model_clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
    AS 'SELECT at FROM model_clock.clock';
"""


def install(sql: psycopg.Connection) -> None:
    """For the sessions that are opened from now on. What is rolled back by a crash of the server is of no interest."""
    name = sql.info.dbname
    sql.execute(_SCHEMA)
    sql.execute(f'ALTER DATABASE "{name}" SET search_path = model_clock, pg_catalog, public')
    sql.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
