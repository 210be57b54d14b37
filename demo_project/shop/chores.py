"""Tasks of a bad night, for ``make serve``: they fail, crash, hang and wait, so that the admin has much to show."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

from celery import shared_task

from demo_project.shop.payment_provider import ProviderUnavailable
from reliable_jobs import ReliableTask


class WarehouseOffline(ConnectionError):
    pass


@shared_task(base=ReliableTask)
def update_search_index(product: str) -> str:
    """Goes well."""
    time.sleep(random.uniform(0.005, 0.08))  # the work that it stands for; its times are what the charts show
    return product


@shared_task(base=ReliableTask)
def sync_warehouse(shelf: int) -> None:
    """Fails, and nothing runs it again."""
    if shelf % 3 == 0:
        raise WarehouseOffline(f"shelf {shelf}: no route to the warehouse")
    raise ValueError(f"shelf {shelf} holds -{shelf} articles")


@shared_task(base=ReliableTask, autoretry_for=(ProviderUnavailable,), max_retries=20, default_retry_delay=600)
def ask_exchange_rate(currency: str) -> None:
    """Fails, and runs again in ten minutes."""
    raise ProviderUnavailable(f"no rate for {currency}")


@shared_task(base=ReliableTask, bind=True)
def render_catalogue(self: Any) -> None:
    """Kills its process, as an image library does."""
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(base=ReliableTask, atomic=False)
def import_supplier(seconds: float) -> None:
    """Takes long."""
    time.sleep(seconds)  # the work that it stands for


@shared_task(base=ReliableTask)
def send_newsletter(reader: int) -> int:
    """Its queue is paused."""
    return reader


@shared_task(base=ReliableTask)
def count_stock(shelf: int) -> int:
    return shelf


@shared_task(base=ReliableTask)
def report_stock(counts: list[int]) -> int:
    return sum(counts)
