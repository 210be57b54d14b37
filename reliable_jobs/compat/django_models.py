"""Django: a constraint that is checked as another one. Imported by the models only."""

from __future__ import annotations

from typing import Any

from django.db import models

from reliable_jobs.compat.django import DJANGO


@DJANGO.undocumented(
    "UniqueConstraint.check",
    at="django.db.models.constraints:UniqueConstraint.check",
    takes=("model", "connection"),
    since="6.0",
    tests=["test_compat_names"],
)
class DelegatingConstraint(models.UniqueConstraint):
    """A unique constraint whose system check is that of another, which depends on the database. Django calls it
    ``check``, and before 6.0 ``_check``.
    """

    def made_on(self, connection: Any) -> models.UniqueConstraint:
        """The constraint as it is on a database."""
        raise NotImplementedError

    def check(self, model: Any, connection: Any) -> Any:
        made: Any = self.made_on(connection)
        return (made.check if hasattr(made, "check") else made._check)(model, connection)

    _check = check
