"""Jobs that fail, that are ignored, and that travel in a bundle."""

from celery import shared_task
from celery.exceptions import Ignore
from shop.models import Point

from reliable_jobs import ReliableTask


class Refused(Exception):
    pass


@shared_task(base=ReliableTask, name="planned.refuse")
def refuse(number):
    raise Refused(f"order {number} is refused")


@shared_task(base=ReliableTask, name="planned.waive")
def waive(number):
    raise Ignore(f"order {number} is waived")


@shared_task(base=ReliableTask, name="shop.planned.point", bundle=20)
def point(number, part):
    Point.objects.create(number=number, part=part)


def enqueue(number):
    if number % 7 == 0:
        refuse.delay(number)
    elif number % 7 == 1:
        for part in range(3):
            point.delay(number, part)
    elif number % 7 == 2:
        waive.delay(number)
