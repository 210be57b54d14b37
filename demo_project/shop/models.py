"""Orders, stock and payments.

A real shop would make ``Payment.order`` unique as well. Here it is not: a doubled payment must show.
"""

from __future__ import annotations

import uuid

from django.db import models


class Product(models.Model):
    name = models.CharField(max_length=100, unique=True)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField(default=1)
    email = models.EmailField()
    placed_at = models.DateTimeField(auto_now_add=True)
    receipt_sent_at = models.DateTimeField(null=True, blank=True)
    #: The id of its payment's job, to show how that stands.
    payment_job = models.CharField(max_length=36, blank=True, default="")

    def __str__(self) -> str:
        return f"{self.quantity} × {self.product} for {self.email}"

    @property
    def total(self):
        return self.quantity * self.product.price


class Payment(models.Model):
    order = models.ForeignKey(Order, on_delete=models.PROTECT, related_name="payments")
    amount = models.DecimalField(max_digits=8, decimal_places=2)
    charge_id = models.CharField(max_length=36)
    paid_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.amount} for {self.order_id}"


class Upload(models.Model):
    """A supplier's delivery note: lines of ``product,quantity``."""

    text = models.TextField()
    uploaded_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"delivery note {self.pk}"

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


class StockMovement(models.Model):
    """Why the stock is what it is: sold with an order, or delivered with an upload."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.IntegerField()
    order = models.ForeignKey(Order, null=True, blank=True, on_delete=models.PROTECT)
    upload = models.ForeignKey(Upload, null=True, blank=True, on_delete=models.PROTECT)

    def __str__(self) -> str:
        return f"{self.quantity:+d} {self.product}"
