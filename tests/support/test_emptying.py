"""Databases are emptied between tests: what ``migrate`` made stands again, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import OperationalError, connection, transaction

from tests.support import emptying
from tests.testapp.models import Effect, Parent

TABLES = [Effect._meta.db_table, Parent._meta.db_table]

pytestmark = pytest.mark.django_db(transaction=True)


def size(table: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_relation_size(%s)", [table])
        return int(cursor.fetchone()[0])


def content() -> dict[str, Any]:
    """All rows of all tables."""
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    with connection.cursor() as cursor:
        return {table: emptying._rows(connection, cursor, table)[1] for table in tables}


def test_a_test_leaves_the_rows_that_migrate_made_and_no_other() -> None:
    made = content()
    assert made[ContentType._meta.db_table]
    Effect.objects.create(name="left")
    User.objects.create_superuser("ada").user_permissions.add(Permission.objects.first())
    Permission.objects.update(name="another")
    ContentType.objects.create(app_label="left", model="behind")
    ContentType.objects.filter(model="session").delete()
    assert content() != made
    emptying.empty(connection, made, emptying._migrated[emptying._name(connection)])
    assert content() == made


def test_what_stands_is_what_djangos_flush_leaves() -> None:
    """But for the keys, and the time at which the periodic tasks were made."""
    made = content()
    call_command("flush", verbosity=0, interactive=False)
    assert {table: len(rows) for table, rows in content().items()} == {table: len(rows) for table, rows in made.items()}


def test_a_large_table_is_truncated_so_that_no_dead_rows_are_read() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("PostgreSQL keeps dead rows")
    Effect.objects.bulk_create([Effect(name="x" * 90, value="y" * 90) for _ in range(6000)])
    assert size(TABLES[0]) > emptying.LARGE
    emptying.empty(connection, TABLES)
    assert size(TABLES[0]) == 0


def test_it_waits_for_a_session_that_still_uses_a_table() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("the others have no second session here")
    other = connection.copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute(f"SELECT 1 FROM {TABLES[1]}")
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '100ms'")
            with pytest.raises(OperationalError, match="lock timeout"):
                emptying.empty(connection, TABLES)
            transaction.set_rollback(True)
    finally:
        other.close()
