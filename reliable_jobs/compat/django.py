"""Django: database connections. Needs no loaded apps."""

from __future__ import annotations

from typing import Any

from django.db import connections, router

from reliable_jobs.compat.register import Library

DJANGO = Library("Django", "Django", tried="5.2 to 6.1")

#: The class of connections, and what sets their attributes.
WRAPPER = "django.db.backends.base.base:BaseDatabaseWrapper"
INIT = f"{WRAPPER}.__init__"

# --- the connections of this thread -----------------------------------------------------------------------------------


@DJANGO.undocumented(
    "ConnectionHandler.all",
    at="django.utils.connection:BaseConnectionHandler.all",
    takes=("initialized_only",),
    tests=["test_outbox_rows"],
)
def made_connections() -> list[Any]:
    """The connections that this thread has made so far, open or not: to look for a transaction makes no other."""
    return list(connections.all(initialized_only=True))


@DJANGO.undocumented(
    "ConnectionHandler.close_all",
    at="django.utils.connection:BaseConnectionHandler.close_all",
    tests=["test_parent_endings"],
)
def close_connections() -> None:
    """Close this thread's connections, which its end would leave open."""
    connections.close_all()


@DJANGO.undocumented(
    "ConnectionHandler.__delitem__",
    at="django.utils.connection:BaseConnectionHandler.__delitem__",
    tests=["test_compat_names"],
)
def start_anew(alias: str) -> None:
    """Close a connection, and have the next use make a new one: a task function has left a transaction open on it, and
    nothing would be committed any more."""
    connections[alias].close()
    del connections[alias]


@DJANGO.undocumented(
    "ConnectionHandler.settings",
    at="django.utils.connection:BaseConnectionHandler.settings",
    tests=["test_kept"],
)
def database_settings() -> dict[str, dict[str, Any]]:
    """The databases' settings by alias, with Django's defaults, as connections to come will read them."""
    configured: dict[str, dict[str, Any]] = connections.settings
    return configured


settings_of = DJANGO.attribute(
    "connection.settings_dict",
    "The settings of one connection: tests and some libraries give it others than ``DATABASES`` has.",
    inside=INIT,
    tests=["test_compat_names", "test_database_settings"],
)


@DJANGO.undocumented(
    "router.allow_migrate_model",
    at="django.db.utils:ConnectionRouter.allow_migrate_model",
    takes=("db", "model"),
    tests=["test_databases"],
)
def may_hold(alias: str, model: Any) -> bool:
    """Whether the routers allow a model's table in a database."""
    return bool(router.allow_migrate_model(alias, model))


# --- one connection ---------------------------------------------------------------------------------------------------


driver_of = DJANGO.attribute(
    "connection.connection",
    "The driver's own connection, None while there is none. Where it is another one than before the task function, the "
    "transaction is gone.",
    inside=INIT,
    tests=["test_ends_of_runs", "test_relay"],
)


@DJANGO.undocumented("connection.health_check_done", inside=INIT, tests=["test_execution"])
def skip_health_check(connection: Any) -> None:
    """Leave out the check that CONN_HEALTH_CHECKS makes before the next statement: the claim is the check."""
    connection.health_check_done = True


@DJANGO.undocumented("connection.introspection", inside=INIT, tests=["test_databases"])
@DJANGO.undocumented(
    "DatabaseIntrospection.table_names",
    at="django.db.backends.base.introspection:BaseDatabaseIntrospection.table_names",
    tests=["test_databases"],
)
def table_names(connection: Any) -> list[str]:
    """The names of the tables that a database holds."""
    names: list[str] = connection.introspection.table_names()
    return names


@DJANGO.undocumented(
    "DatabaseIntrospection.get_table_description",
    at="django.db.backends.base.introspection:BaseDatabaseIntrospection.get_table_description",
    takes=("cursor", "table_name"),
    tests=["test_migrations"],
)
def column_names(connection: Any, table: str) -> set[str]:
    """The names of a table's columns."""
    with connection.cursor() as cursor:
        return {column.name for column in connection.introspection.get_table_description(cursor, table)}


@DJANGO.undocumented(
    "DatabaseIntrospection.get_constraints",
    at="django.db.backends.base.introspection:BaseDatabaseIntrospection.get_constraints",
    takes=("cursor", "table_name"),
    tests=["test_migrations"],
)
def index_names(connection: Any, table: str) -> set[str]:
    """The names of a table's indexes and constraints."""
    with connection.cursor() as cursor:
        return set(connection.introspection.get_constraints(cursor, table))


@DJANGO.undocumented(
    "DatabaseOperations.quote_name",
    at="django.db.backends.base.operations:BaseDatabaseOperations.quote_name",
    takes=("name",),
    tests=["test_admin"],
)
def quoted(connection: Any, name: str) -> str:
    """The name of a table or column as it stands in the database's SQL."""
    text: str = connection.ops.quote_name(name)
    return text


skips_locked = DJANGO.attribute(
    "DatabaseFeatures.has_select_for_update_skip_locked",
    "Whether a database can pass over rows that are locked, so that two may take rows at a time.",
    at="django.db.backends.base.features:BaseDatabaseFeatures.has_select_for_update_skip_locked",
    through="features",
    tests=["test_relay"],
)


locks_no_keys = DJANGO.attribute(
    "DatabaseFeatures.has_select_for_no_key_update",
    "Whether a database can lock a row so that others may still refer to its key.",
    at="django.db.backends.base.features:BaseDatabaseFeatures.has_select_for_no_key_update",
    through="features",
    tests=["test_compat_names"],
)


has_partial_indexes = DJANGO.attribute(
    "DatabaseFeatures.supports_partial_indexes",
    "Whether a database has indexes of some rows only.",
    at="django.db.backends.base.features:BaseDatabaseFeatures.supports_partial_indexes",
    through="features",
    tests=["test_compat_names"],
)


most_parameters = DJANGO.attribute(
    "DatabaseFeatures.max_query_params",
    "How many parameters one statement may have; None where there is no limit.",
    at="django.db.backends.base.features:BaseDatabaseFeatures.max_query_params",
    through="features",
    tests=["test_compat_names"],
)


zone_of = DJANGO.attribute(
    "connection.timezone_name",
    "The name of the time zone of a connection's session.",
    at=f"{WRAPPER}.timezone_name",
    tests=["test_compat_names"],
)


djangos_errors = DJANGO.attribute(
    "connection.wrap_database_errors",
    "Around what is asked of the driver itself (a COPY): its errors become Django's.",
    at=f"{WRAPPER}.wrap_database_errors",
    tests=["test_compat_names"],
)


@DJANGO.undocumented(
    "postgresql.DatabaseWrapper._connection_pools",
    at="django.db.backends.postgresql.base:DatabaseWrapper._connection_pools",
    rare=True,
    tests=["test_kept"],
)
def take_pools() -> list[Any]:
    """Take the pools of ``OPTIONS["pool"]`` away from Django, in a child that has inherited them, and the connections
    that came from them: returned to its pool such a connection would wait for a thread that is not here."""
    taken: list[Any] = []
    pools = [(connection, getattr(connection, "_connection_pools", {})) for connection in made_connections()]
    for connection, by_alias in pools:
        if connection.alias in by_alias:
            connection.connection = None
    for _, by_alias in pools:
        taken.extend(by_alias.values())
        by_alias.clear()
    return taken


@DJANGO.undocumented(
    "QuerySet._raw_delete",
    at="django.db.models.query:QuerySet._raw_delete",
    takes=("using",),
    tests=["test_pruner", "test_promise_7_no_silent_discard"],
)
def delete_alone(rows: Any, alias: str) -> None:
    """Delete rows by one statement, without the cascade that collects ids first: rows that are requeued meanwhile would
    be deleted, too."""
    rows._raw_delete(alias)


# --- for tests --------------------------------------------------------------------------------------------------------


@DJANGO.undocumented("connection.copy", at=f"{WRAPPER}.copy", takes=("alias",), tests=["test_testing_crashes"])
def copied_connection(connection: Any) -> Any:
    """Another connection with settings of its own, for a statement about the database from outside of it."""
    return connection.copy()


@DJANGO.undocumented(
    "testcases._DatabaseFailure.wrapped",
    inside="django.test.testcases:_DatabaseFailure.__init__",
    rare=True,
    tests=["test_testing_crashes"],
)
def is_barred(connection: Any) -> bool:
    """Whether a test case of Django's does not let its test use a database, by its ``databases``."""
    return hasattr(connection.connect, "wrapped")
