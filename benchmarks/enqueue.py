"""What a job costs the request: orders per second, each in a transaction of its own with one job."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.harness import Arena, Benchmark, Contender
from benchmarks.rivals import Rival

#: Orders before the clock starts.
WARM_UP = 50


def placing(rival: Rival) -> Callable[[int], None]:
    """In the child: what places an order with one job, in a transaction."""
    from django.db import transaction

    from benchmarks.project.models import Order

    def place(number: int) -> None:
        with transaction.atomic():
            Order.objects.create(number=number)
            rival.enqueue(number)

    return place


def place_orders(rival: Rival, count: int) -> float:
    """In the child: seconds for ``count`` orders, one transaction each, on one kept connection."""
    place = placing(rival)
    for number in range(WARM_UP):
        place(number)
    started = time.perf_counter()
    for number in range(WARM_UP, WARM_UP + count):
        place(number)
    return time.perf_counter() - started


def measure(arena: Arena, orders: int) -> dict[str, float]:
    arena.open()
    seconds = arena.child("benchmarks.enqueue:place_orders", count=orders)
    wanted = orders + WARM_UP
    arena.require("orders", arena.number("SELECT count(*) FROM benchmark_order"), wanted)
    if arena.rival.stored:
        arena.require("stored jobs", arena.number(arena.rival.stored), wanted)
    if arena.rival.messages:
        arena.require("messages", arena.messages(), wanted)
    return {"orders/s": orders / seconds}


BENCHMARK = Benchmark(
    about="orders with one job each, one transaction and one commit per order, one process, no worker running; "
    "then rows and messages are counted",
    contenders=(
        Contender("order only", ":Nothing"),
        Contender("Celery, on_commit, confirmed", "celery:BareCelery"),
        Contender("ReliableTask on commit", "reliable:OnCommit"),
        Contender("ReliableTask by relay", "reliable:Relay"),
        Contender("django-celery-outbox", "celery_outbox:CeleryOutbox"),
        Contender("procrastinate", "procrastinate:Procrastinate"),
    ),
    measure=measure,
    normal={"orders": 2000},
    quick={"orders": 400},
    baseline="order only",
)
