"""The work is one row of a model, unique by constraint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from django.core.exceptions import ImproperlyConfigured
from django.db import models

from reliable_jobs.task.function import check_arguments
from reliable_jobs.task.reliable_task import ReliableTask
from reliable_jobs.task_types import P


class GetOrCreateTask(ReliableTask[P, dict[str, Any]]):
    """Makes one row of a model unless it is there.

    The result is ``{"pk": …, "created": …}``. However many messages come, and however many run at once, there is one
    row; the model's own unique constraint sees to it, so the lookup must name the fields of one.

    Raises:
        django.core.exceptions.ImproperlyConfigured: it does not, or there is no model.

    Example::

        class OpenAccount(GetOrCreateTask):
            name = "shop.open_account"
            model = Account

            def lookup(self, customer: str, plan: str) -> dict[str, str]:
                return {"username": customer}

            def defaults(self, customer: str, plan: str) -> dict[str, str]:
                return {"last_name": plan}

        open_account = app.register_task(OpenAccount())
        open_account.delay("ada", plan="basic")
    """

    abstract = True
    model: ClassVar[type[models.Model] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.lookup is not GetOrCreateTask.lookup and cls.run is GetOrCreateTask.run:
            # The task's signature is that of lookup(): run() takes anything and could not tell a wrong call.
            check_arguments(cls, cls.lookup, bound=True)

    def lookup(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What identifies the row: field names and values.

        Args:
            args, kwargs: the task's arguments.

        Raises:
            NotImplementedError: the task's class does not define it.
        """
        raise NotImplementedError(
            f"{self.name}: define lookup() with the task's arguments; it returns the unique fields."
        )

    def defaults(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The other fields of the row.

        Args:
            args, kwargs: the task's arguments.
        """
        return {}

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        found, created = self._write(self._manager(), self.lookup(*args, **kwargs), self.defaults(*args, **kwargs))
        return {"pk": found.pk, "created": created}

    def _write(self, manager: Any, lookup: dict[str, Any], defaults: dict[str, Any]) -> tuple[models.Model, bool]:
        self._require_constraint(lookup)
        found: tuple[models.Model, bool] = manager.get_or_create(**lookup, defaults=defaults)
        return found

    def _manager(self) -> Any:
        if self.model is None:
            raise ImproperlyConfigured(f"{self.name}: set model to the model whose row this task makes.")
        return self.model._default_manager

    def _require_constraint(self, lookup: Mapping[str, Any]) -> None:
        if not _unique(self.model, lookup):
            raise ImproperlyConfigured(
                f"{self.name}: lookup() names {', '.join(lookup) or 'nothing'}, and no unique constraint of "
                f"{self.model.__name__ if self.model else self.model} covers that: two messages at once would make two "
                "rows. Add a UniqueConstraint on these fields."
            )


class UpdateOrCreateTask(GetOrCreateTask[P]):
    """As :class:`GetOrCreateTask`; a row that is there gets the values of ``defaults()``, so the last message wins.

    Example::

        class ChangePlan(UpdateOrCreateTask):
            name = "shop.change_plan"
            model = Account

            def lookup(self, customer: str, plan: str) -> dict[str, str]:
                return {"username": customer}

            def defaults(self, customer: str, plan: str) -> dict[str, str]:
                return {"last_name": plan}

        change_plan = app.register_task(ChangePlan())
    """

    abstract = True

    def _write(self, manager: Any, lookup: dict[str, Any], defaults: dict[str, Any]) -> tuple[models.Model, bool]:
        self._require_constraint(lookup)
        found: tuple[models.Model, bool] = manager.update_or_create(**lookup, defaults=defaults)
        return found


def _unique(model: Any, lookup: Mapping[str, Any]) -> bool:
    meta = model._meta
    named = set()
    for name in lookup:
        plain = name.removesuffix("__exact")
        if "__" not in plain:
            named.add(meta.pk.name if plain == "pk" else meta.get_field(plain).name)
    single = [{field.name} for field in meta.concrete_fields if field.unique or field.primary_key]
    together = [set(names) for names in meta.unique_together]
    constraints = [item for item in meta.constraints if isinstance(item, models.UniqueConstraint)]
    if any(item.expressions for item in constraints):
        return True  # e.g. on Lower("email"): whether the lookup means that one can't be told here
    return any(fields <= named for fields in [*single, *together, *(set(item.fields) for item in constraints)])
