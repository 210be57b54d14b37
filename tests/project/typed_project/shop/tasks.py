"""The tasks of a project that is checked by mypy --strict and by pyright's strict mode: each way to write one."""

from __future__ import annotations

from typing import Any

from reliable_jobs import AdoptedTask, DayLongTask, ReliableTask, RetriedTask, TenHourTask, reliable_task
from reliable_jobs.idempotency import IdempotentTask


@reliable_task
def send_receipt(order_id: int, *, copy_to: str | None = None) -> str:
    return f"receipt {order_id} {copy_to}"


@reliable_task(queue="reports", base=TenHourTask, retry_window=3600.0, sensitive=("password",))
def build_report(user_id: int, password: str) -> list[int]:
    return [user_id]


@reliable_task(bind=True, atomic=False, max_retries=8)
def charge(self: ReliableTask, order_id: int) -> bool:
    with self.fenced():
        return bool(self.idempotency_key)


@reliable_task(bind=True, base=RetriedTask)
def deliver(self: RetriedTask, address: str) -> None:
    raise self.retry(countdown=60)


@reliable_task
async def fetch(url: str) -> bytes:
    return url.encode()


class OwnBase(DayLongTask):
    """A base class of the project's, without a function: it says nothing of arguments."""

    def greeting(self) -> str:
        return "hello"


@reliable_task(bind=True, base=OwnBase, name="shop.greet")
def greet(self: OwnBase, name: str) -> str:
    return f"{self.greeting()} {name}"


class PerOrder(IdempotentTask):
    def natural_key(self, order_id: int, express: bool = False) -> str:
        return f"order-{order_id}"


@reliable_task(base=PerOrder)
def ship(order_id: int, express: bool = False) -> str:
    return "parcel"


@reliable_task(base=AdoptedTask, acks_late=True)
def clean_up(days: int = 7) -> int:
    return days


class Invoice(ReliableTask):
    """A class-based task: its ``run`` says what the arguments are."""

    name = "shop.invoice"

    def run(self, order_id: int, draft: bool = False) -> str:
        return f"invoice {order_id}"


class Thumbnail(RetriedTask[[int], bytes]):
    """One that says it in the class, too: then apply_async() knows the result."""

    name = "shop.thumbnail"

    def run(self, picture_id: int) -> bytes:
        return b""


class Download(ReliableTask):
    name = "shop.download"

    async def run(self, url: str) -> bytes:
        return b""


invoice = Invoice()
thumbnail = Thumbnail()
download = Download()


def any_task(task: ReliableTask, *args: Any) -> str:
    """Written without parameters, a task is one of any arguments."""
    return task.delay(*args).id
