"""They place orders, some with a voucher that is not valid, and keep a list of their own outside the database."""

from __future__ import annotations

import uuid

from demo_project.shop.models import Product
from demo_project.shop.orders import InvalidVoucher, place_order, upload_delivery_note
from demo_project.trial import witnesses

NAMES = (
    "Anchor",
    "Bell",
    "Compass",
    "Dinghy",
    "Ensign",
    "Fender",
    "Grapnel",
    "Hawser",
    "Jib",
    "Keel",
    "Lantern",
    "Mast",
)
FIRST_STOCK = 10_000
ROLLED_BACK_ONE_IN = 10


class Customers:
    def __init__(self) -> None:
        Product.objects.bulk_create(
            Product(name=name, price=5 + number, stock=FIRST_STOCK) for number, name in enumerate(NAMES)
        )
        self.products = list(Product.objects.order_by("pk"))
        self.placed = self.committed = 0

    def order(self) -> None:
        """Place one order; every tenth has a bad voucher and is rolled back."""
        self.placed += 1
        order_id = uuid.uuid4()
        product = self.products[self.placed % len(self.products)]
        voucher = "" if self.placed % ROLLED_BACK_ONE_IN else "EXPIRED"
        try:
            place_order(product, 1 + self.placed % 3, "customer@example.com", voucher=voucher, id=order_id)
        except InvalidVoucher:
            witnesses.note("orders.log", f"rolled-back {order_id}")
        else:
            witnesses.note("orders.log", f"committed {order_id}")
            self.committed += 1

    def upload(self) -> None:
        """Hand in a delivery note of 120 lines."""
        upload_delivery_note("\n".join(f"{product.name},5" for product in self.products * 10))
