"""The database's time, as Django stores times."""

from __future__ import annotations

from typing import Any

from django.db.models import functions

from reliable_jobs.compat.django import zone_of

_SQLITE = "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')"


def now_sql(vendor: str, utc: bool) -> str:
    """The SQL of the time of the statement, for a text that is executed with parameters.

    Args:
        utc: whether Django stores times of that database in UTC.

    MySQL's CURRENT_TIMESTAMP is in the session's zone, which Django does not set, and its columns know no zone. Where
    Django stores local times there (``USE_TZ = False``, or a ``TIME_ZONE`` of the database), the session's zone has to
    be the same: ``reliable_jobs.W027`` compares them. SQLite's clock is UTC; Django has set this process's zone to
    TIME_ZONE.
    """
    if vendor == "mysql":
        return "UTC_TIMESTAMP(6)" if utc else "CURRENT_TIMESTAMP(6)"
    if vendor == "sqlite":
        return _SQLITE if utc else _SQLITE.replace(")", ", 'localtime')")
    return "STATEMENT_TIMESTAMP()"


def from_now_sql(vendor: str, utc: bool) -> str:
    """The SQL of a time some seconds from now: one parameter, a float; NULL for NULL."""
    now = now_sql(vendor, utc)
    if vendor == "mysql":
        return f"{now} + INTERVAL (%s * 1000000) MICROSECOND"
    if vendor == "sqlite":
        return now.replace(")", ", %s || ' seconds')")
    return f"{now} + %s * INTERVAL '1 second'"  # make_interval() takes five times as long to plan


class Now(functions.Now):  # noqa: TID251 - the rule sends everybody else to this class
    """Django's ``Now``, in the zone that Django stores times in: see :func:`now_sql`."""

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template=now_sql("mysql", zone_of(connection) == "UTC"), **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = now_sql("sqlite", zone_of(connection) == "UTC").replace("%", "%%")
        return self.as_sql(compiler, connection, template=template, **extra)
