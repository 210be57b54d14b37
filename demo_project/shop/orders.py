"""Placing an order: the one transaction on which everything else hangs."""

from __future__ import annotations

import uuid

from django.db import transaction

from demo_project.shop.models import Order, Product, Upload
from demo_project.shop.tasks import process_upload, reserve_stock, take_payment


class InvalidVoucher(Exception):
    """The voucher is unknown or used up; no order was placed."""


@transaction.atomic
def place_order(
    product: Product, quantity: int, email: str, *, voucher: str = "", id: uuid.UUID | None = None
) -> Order:
    """Place an order. Its jobs are rows of the same transaction: they exist if, and only if, the order does.

    Raises:
        InvalidVoucher: and with it everything here is undone, the jobs too, although ``delay()`` was called already.
    """
    order = Order.objects.create(id=id or uuid.uuid4(), product=product, quantity=quantity, email=email)
    reserve_stock.delay(order.pk)
    order.payment_job = take_payment.delay(order.pk).id
    order.save(update_fields=["payment_job"])
    if voucher:
        raise InvalidVoucher(f"The voucher {voucher!r} is not valid.")
    return order


@transaction.atomic
def upload_delivery_note(text: str) -> Upload:
    upload = Upload.objects.create(text=text)
    process_upload.delay(upload.pk)
    return upload
