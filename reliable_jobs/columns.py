"""What the models' columns and constraints need beside Django's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import Q
from django.db.models.expressions import DatabaseDefault

from reliable_jobs.clock import Now
from reliable_jobs.compat.django import has_partial_indexes
from reliable_jobs.compat.django_models import DelegatingConstraint

if TYPE_CHECKING:
    _DateTimeField = models.DateTimeField[Any, Any]
else:
    _DateTimeField = models.DateTimeField


class UniqueWhereGiven(DelegatingConstraint):
    """Unique among the rows that have a value in the last of the fields. An index of those alone: most jobs have no
    key, and each write of a row would enter it.

    Where the database has no partial indexes (MySQL), an index of all rows; NULLs are distinct there as well.
    """

    def __init__(self, *, fields: Sequence[str], name: str) -> None:
        super().__init__(
            fields=fields,
            name=name,
            condition=Q(**{f"{fields[-1]}__isnull": False}),
            violation_error_code="unique",
            violation_error_message=f"There is one already with this {' and '.join(fields)}.",
        )

    def made_on(self, connection: Any) -> models.UniqueConstraint:
        if has_partial_indexes(connection):
            return models.UniqueConstraint(fields=self.fields, name=self.name, condition=self.condition)
        return models.UniqueConstraint(fields=self.fields, name=self.name)

    def constraint_sql(self, model: Any, schema_editor: Any) -> Any:
        return self.made_on(schema_editor.connection).constraint_sql(model, schema_editor)

    def create_sql(self, model: Any, schema_editor: Any) -> Any:
        return self.made_on(schema_editor.connection).create_sql(model, schema_editor)

    def remove_sql(self, model: Any, schema_editor: Any) -> Any:
        return self.made_on(schema_editor.connection).remove_sql(model, schema_editor)

    def deconstruct(self) -> Any:
        path, args, options = super().deconstruct()
        return path, args, {name: options[name] for name in ("fields", "name")}


class StampField(_DateTimeField):
    """A time that the database writes with a new row. The column's own default, which rows from elsewhere get, is
    Django's ``Now``: see :class:`reliable_jobs.clock.Now`."""

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        value = super().pre_save(model_instance, add)
        return Now() if isinstance(value, DatabaseDefault) else value

    def deconstruct(self) -> Any:
        name, _, args, options = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, options
