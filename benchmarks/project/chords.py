"""The tasks of the benchmark ``chord``."""

from __future__ import annotations

from benchmarks.project.models import Effect, Order
from benchmarks.rivals import current


@current().decorate
def part(number: int) -> int:
    Effect.objects.create(number=number)
    return number


@current().decorate
def collect(values: list[int]) -> None:
    Order.objects.create(number=len(values))
