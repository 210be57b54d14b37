"""Calls of these tasks. Each checker must complain of the lines that end with ``# error``, and of no other.

Without celery-types, Celery's classes are anything to mypy, and so is what is derived from them: what it can't see then
is marked ``# error with celery-types``.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import reliable_jobs
from reliable_jobs import ReliableTask, RetriedTask, reliable_task
from reliable_jobs.testing import assert_enqueued, run_jobs
from shop.tasks import (
    any_task,
    build_report,
    charge,
    clean_up,
    deliver,
    download,
    fetch,
    greet,
    invoice,
    send_receipt,
    ship,
    thumbnail,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type

    from reliable_jobs.results import JobResult


def functions() -> None:
    assert_type(send_receipt.delay(7), JobResult[str])
    assert_type(send_receipt.delay(7, copy_to="ada").get(timeout=5), str)
    assert_type(send_receipt.delay(order_id=7).id, str)
    assert_type(send_receipt(7), str)
    send_receipt.delay("7")  # error
    send_receipt.delay()  # error
    send_receipt.delay(7, "ada")  # error
    send_receipt.delay(7, copy_too="ada")  # error
    send_receipt("7")  # error
    send_receipt.delay(7).get().append(1)  # error

    assert_type(build_report.delay(1, password="secret").get(), list[int])
    build_report.delay(1)  # error


def bound() -> None:
    assert_type(charge.delay(7).get(), bool)
    charge.delay(charge, 7)  # error
    assert_type(deliver.delay("ada@example.org"), JobResult[None])
    assert_type(greet.delay(name="Ada").get(), str)
    greet.delay(1)  # error


def bases() -> None:
    assert_type(ship.delay(7, express=True).get(), str)
    ship.delay("7")  # error
    assert_type(clean_up.delay().get(), int)
    clean_up.delay(days="7")  # error
    assert_type(any_task(send_receipt, 7), str)


def classes() -> None:
    assert_type(invoice.delay(7, draft=True).get(), str)
    invoice.delay("7")  # error
    invoice.delay(7, drafts=True)  # error
    assert_type(thumbnail.delay(picture_id=7).get(), bytes)
    assert_type(thumbnail.apply_async((7,)).get(), bytes)
    thumbnail.delay("7")  # error
    download.delay(7)  # error


def options() -> None:
    in_a_minute = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=1)
    result = send_receipt.apply_async((7,), {"copy_to": None}, key="receipt-7", countdown=5.0, queue="mail", priority=3)
    assert_type(result, JobResult[str])
    assert_type(result.get(), str)
    assert_type(result.get(propagate=False), Any)
    assert_type(result.ready(), bool)
    send_receipt.apply_async([7], eta=in_a_minute, expires=3600, transactional=False)
    send_receipt.apply_async(7)  # error
    send_receipt.apply_async((7,), countdwon=5)  # error
    send_receipt.apply_async((7,), countdown="5")  # error
    send_receipt.apply_async((7,), key=1.5)  # error
    send_receipt.apply_async((7,), queue="mail", priority="high")  # error
    assert_type(send_receipt.AsyncResult("41b1d6f8-4d5e-4d5a-8c2c-6d7f2c1f9b11").get(), str)


def many() -> None:
    assert_type(send_receipt.bulk_delay(((pk,) for pk in range(3)), queue="mail", countdown=60), list[str])
    send_receipt.bulk_delay([{"order_id": 1, "copy_to": None}])
    send_receipt.bulk_delay(range(3))  # error
    send_receipt.bulk_delay([(1,)], key="one")  # error


def on_commit() -> None:
    assert_type(send_receipt.delay_on_commit(7), JobResult[str])
    assert_type(send_receipt.apply_async_on_commit((7,), queue="mail"), JobResult[str])
    send_receipt.delay_on_commit("7")  # error


def signatures() -> None:
    send_receipt.si(7, copy_to="ada")
    send_receipt.s(copy_to="ada")
    send_receipt.si("7")  # error


async def async_views() -> None:
    assert_type(await send_receipt.adelay(7), JobResult[str])
    assert_type(await send_receipt.aapply_async((7,), key=7), JobResult[str])
    await send_receipt.adelay("7")  # error
    assert_type(fetch.delay("https://example.org").get(), bytes)
    assert_type(fetch.delay("https://example.org"), JobResult[bytes])
    fetch.delay(7)  # error


def tests() -> None:
    _ = reliable_jobs.RetryTask  # error
    assert_enqueued(send_receipt, args=[7], count=1)
    run_jobs(raise_errors=True)


@reliable_task(base=int)  # error
def base_is_no_task() -> None: ...


@reliable_task(bind=True)  # error with celery-types
def self_is_another_task(self: RetriedTask) -> None: ...


@reliable_task(bundle="many")  # error
def bundle_is_no_number() -> None: ...


class Wrong(ReliableTask[[int], str]):
    def run(self, order_id: str) -> str:  # error
        return order_id
