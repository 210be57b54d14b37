"""What came of it, counted from business tables and the logs outside: nothing here reads a job's row."""

from __future__ import annotations

import collections
import dataclasses

from django.db.models import Count, F, Sum

from demo_project.shop.models import Order, Payment, Product, StockMovement, Upload
from demo_project.trial import witnesses
from demo_project.trial.acts import Tally, is_done
from demo_project.trial.customers import FIRST_STOCK


@dataclasses.dataclass
class Verdict:
    orders: int = 0
    rolled_back: int = 0
    uploads: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    phantom: list[str] = dataclasses.field(default_factory=list)
    duplicates: list[str] = dataclasses.field(default_factory=list)
    retried: int = 0
    rescued: int = 0
    #: Outside effects that were repeated, after a kill, under the same idempotency key.
    repeated: int = 0
    #: The time was up while work was still getting done: what is missing may be late rather than lost.
    cut_short: bool = False


def promised() -> tuple[list[str], list[str]]:
    """The orders that were committed, and those that were rolled back, by the word of whoever placed them."""
    words = [line.split() for line in witnesses.lines("orders.log")]
    return [order for what, order in words if what == "committed"], [
        order for what, order in words if what == "rolled-back"
    ]


def unfinished() -> int:
    """How many orders and uploads lack something."""
    orders = Order.objects.filter(receipt_sent_at=None).count()
    unreserved = Order.objects.filter(stockmovement=None).count()
    return max(orders, unreserved) + Upload.objects.filter(stockmovement=None).count()


def effects() -> int:
    """How much has been done: it grows while work gets done, also while no order is through with all of it."""
    paid, booked = Payment.objects.count(), StockMovement.objects.count()
    return paid + booked + Order.objects.exclude(receipt_sent_at=None).count()


def half_done_uploads() -> list[str]:
    """Uploads of which some lines are booked, but not all, or some twice. There must be none at any time."""
    found = Upload.objects.annotate(booked=Count("stockmovement")).exclude(booked=0)
    return [
        f"{upload}: {upload.booked} of {len(upload.lines)} lines"
        for upload in found
        if upload.booked != len(upload.lines)
    ]


def verdict(tally: Tally) -> Verdict:
    result = Verdict()
    committed, rolled_back = promised()
    result.orders, result.rolled_back = len(committed), len(rolled_back)
    result.uploads = Upload.objects.count()
    requests = witnesses.provider()
    charges = collections.defaultdict(set)
    for request in requests:
        if request.what == "charged":
            charges[request.order].add(request.key)
    mails = collections.defaultdict(collections.Counter)
    for message_id, order in witnesses.mails():
        mails[order][message_id] += 1
    in_tables = {str(pk) for pk in Order.objects.values_list("pk", flat=True)}
    payments = collections.Counter(str(pk) for pk in Payment.objects.values_list("order", flat=True))
    movements = collections.Counter(
        str(pk) for pk in StockMovement.objects.exclude(order=None).values_list("order", flat=True)
    )

    effects = (("stock", movements), ("payment", payments), ("charge", charges), ("receipt", mails))
    for order in committed:
        if order not in in_tables:
            result.lost.append(f"order {order}")
        for name, found in effects:
            count = len(found[order]) if name in ("charge", "receipt") else found[order]
            if count == 0:
                result.lost.append(f"{name} of order {order}")
            elif count > 1:
                result.duplicates.append(f"{count} × {name} for order {order}")
    known = set(committed)
    seen = set().union(in_tables, *(found for _, found in effects), witnesses.orders_seen_in_shop_log())
    seen |= {request.order for request in requests}
    result.phantom = [f"order {order}" for order in sorted(seen - known)]

    for upload in Upload.objects.filter(stockmovement=None):
        result.lost.append(str(upload))
    result.duplicates += half_done_uploads()
    booked = Product.objects.annotate(moved=Sum("stockmovement__quantity", default=0))
    for product in booked.exclude(stock=FIRST_STOCK + F("moved")):
        result.duplicates.append(
            f"stock of {product} is {product.stock}, its movements say {FIRST_STOCK + product.moved}"
        )
    result.duplicates += _at_once(requests, tally)

    refused = {request.order for request in requests if request.what == "refused"}
    result.retried = sum(1 for order in refused if payments[order])
    result.rescued = sum(1 for victim in tally.harmed if is_done(victim))
    result.repeated = sum(sum(sent.values()) - len(sent) for sent in mails.values()) + sum(
        count - 1 for count in collections.Counter((r.order, r.key) for r in requests if r.what == "charged").values()
    )
    return result


def _at_once(requests: list[witnesses.Request], tally: Tally) -> list[str]:
    """Payments asked for by one process while another one, undisturbed by us, was at it."""
    at_it: dict[str, set[int]] = collections.defaultdict(set)
    found = []
    for request in requests:
        if request.what != "asked":
            at_it[request.key].discard(request.pid)
            continue
        others = {pid for pid in at_it[request.key] if (pid, request.order) not in tally.disturbed}
        if others:
            found.append(f"payment of order {request.order} asked for by two processes at once")
        at_it[request.key].add(request.pid)
    return found
