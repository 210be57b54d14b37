"""What the shop does in the background. This is the file to copy from."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from celery import shared_task
from django.core.mail import EmailMessage
from django.db.models import F
from django.utils import timezone

from demo_project.shop import payment_provider
from demo_project.shop.models import Order, Payment, Product, StockMovement, Upload
from reliable_jobs import ReliableTask

logger = logging.getLogger("shop")


@shared_task(base=ReliableTask)
def reserve_stock(order_id: uuid.UUID) -> None:
    """Database work only: the body runs in one transaction with the job's own end, so it happens exactly once."""
    order = Order.objects.get(pk=order_id)
    logger.info("order %s: reserving stock", order.pk)
    StockMovement.objects.create(product=order.product, quantity=-order.quantity, order=order)
    Product.objects.filter(pk=order.product_id).update(stock=F("stock") - order.quantity)


@shared_task(base=ReliableTask)
def process_upload(upload_id: int) -> int:
    """The upload that must not half-happen: all lines are booked or none, even if the power goes in the middle."""
    upload = Upload.objects.get(pk=upload_id)
    for number, line in enumerate(upload.lines, start=1):
        name, quantity = line.split(",")
        product = Product.objects.get(name=name)
        StockMovement.objects.create(product=product, quantity=int(quantity), upload=upload)
        Product.objects.filter(pk=product.pk).update(stock=F("stock") + int(quantity))
        logger.info("upload %s: line %d of %d", upload.pk, number, len(upload.lines))
    return len(upload.lines)


@shared_task(
    base=ReliableTask,
    bind=True,
    atomic=False,  # it waits for another company: no transaction may stay open meanwhile
    autoretry_for=(payment_provider.ProviderUnavailable,),
    retry_backoff=True,
    max_retries=10,
)
def take_payment(self: Any, order_id: uuid.UUID) -> None:
    """An effect outside the database happens at least once: the key makes the provider see that it is the same one."""
    order = Order.objects.get(pk=order_id)
    if order.payments.exists():
        return  # an earlier run got this far and was cut off just afterwards
    charge_id = payment_provider.charge(order.pk, order.total, idempotency_key=self.idempotency_key)
    with self.fenced():  # commits only while this run still owns the job
        Payment.objects.create(order=order, amount=order.total, charge_id=charge_id)
        send_receipt.delay(order.pk)


@shared_task(base=ReliableTask, bind=True, atomic=False, autoretry_for=(OSError,), retry_backoff=True, max_retries=10)
def send_receipt(self: Any, order_id: uuid.UUID) -> None:
    order = Order.objects.select_related("product").get(pk=order_id)
    if order.receipt_sent_at is not None:
        return
    EmailMessage(
        subject=f"Your receipt for {order.product}",
        body=f"Thank you for your order of {order.quantity} × {order.product}. We have charged you {order.total}.",
        to=[order.email],
        headers={"Message-ID": f"<{self.idempotency_key}@shop.example>", "X-Order": str(order.pk)},
    ).send()
    with self.fenced():
        Order.objects.filter(pk=order.pk).update(receipt_sent_at=timezone.now())
