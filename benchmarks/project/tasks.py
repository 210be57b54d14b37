"""The one body of every contender that works with Django."""

from __future__ import annotations

from benchmarks.project.models import Effect
from benchmarks.rivals import current


@current().decorate
def effect(number: int) -> None:
    Effect.objects.create(number=number)
