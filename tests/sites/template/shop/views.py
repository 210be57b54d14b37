from datetime import datetime, timedelta, timezone

from celery import chain, group
from django.db import transaction
from django.http import HttpResponse
from django.views.decorators.csrf import csrf_exempt

from reliable_jobs.models import Stat
from reliable_jobs.models.statistics import HOUR
from shop import tasks
from shop.models import Order


class OutOfStock(Exception):
    pass


@csrf_exempt
def order(request, number):
    try:
        with transaction.atomic():
            Order.objects.create(number=number)
            enqueue(number)
            if number % 10 == 9:
                raise OutOfStock
    except OutOfStock:
        return HttpResponse("out of stock", status=409)
    return HttpResponse("thank you")


def is_quick(task):
    """What a site's statistics say of a task after its first minutes."""
    hour = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    Stat.objects.create(span=HOUR, at=hour, task=task.name, queue="", ending="succeeded", release="", n=100, r3=100)


def enqueue(number):
    kind = number % 7
    if kind == 0:
        tasks.book.delay(number)
    elif kind == 1:
        tasks.pay.delay(number)
    elif kind == 2:
        if number % 2:
            tasks.remind.apply_async((number,), countdown=2, expires=600)
        else:
            in_two_seconds = datetime.now(timezone.utc) + timedelta(seconds=2)
            tasks.remind.apply_async((number,), eta=in_two_seconds, expires=in_two_seconds + timedelta(minutes=10))
    elif kind == 3:
        for _ in range(2):  # a double click
            tasks.receipt.apply_async((number,), key=f"receipt-{number}")
        if number == 3:
            is_quick(tasks.item)
        for position in range(30):  # they share messages
            tasks.item.delay(number, position)
    elif kind == 4:
        chain(tasks.pack.s(number), group(tasks.label.s(), tasks.weigh.s()), tasks.ship.s()).delay()
    elif kind == 5:
        tasks.charge.delay(number)
    else:
        tasks.invoice.delay(number)
