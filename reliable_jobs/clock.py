"""The database's time, as Django stores times."""

from __future__ import annotations

from typing import Any

from django.db.models import functions


class Now(functions.Now):  # noqa: TID251 - the one place
    """Django's ``Now``, in the zone that Django stores times in.

    MySQL's CURRENT_TIMESTAMP is in the session's zone, which Django does not set, and its columns know no zone. Where
    Django stores local times there (``USE_TZ = False``, or a ``TIME_ZONE`` of the database), the session's zone has to
    be the same: ``reliable_jobs.W027`` compares them. SQLite's clock is UTC.
    """

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "UTC_TIMESTAMP(6)" if connection.timezone_name == "UTC" else "CURRENT_TIMESTAMP(6)"
        return self.as_sql(compiler, connection, template=template, **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        if connection.timezone_name == "UTC":
            return super().as_sqlite(compiler, connection, **extra)
        # Django has set this process's zone to TIME_ZONE.
        template = "STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW', 'localtime')"
        return self.as_sql(compiler, connection, template=template, **extra)
