"""Jobs that fail, that are ignored, and that travel in a bundle."""

import os
import signal

from celery import shared_task
from celery.exceptions import Ignore
from shop.models import Point

from reliable_jobs import ReliableTask

CRASHES, EXPIRES = 3, 4


class Refused(Exception):
    pass


@shared_task(base=ReliableTask, name="planned.refuse")
def refuse(number):
    raise Refused(f"order {number} is refused")


@shared_task(base=ReliableTask, name="planned.waive")
def waive(number):
    raise Ignore(f"order {number} is waived")


@shared_task(base=ReliableTask, name="planned.crash")
def crash(number):
    """Dies of its own argument, each time it is started."""
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(base=ReliableTask, name="shop.planned.point", bundle=20)
def point(number, part):
    Point.objects.create(number=number, part=part)


def enqueue(number):
    if number == CRASHES:
        crash.delay(number)
    if number == EXPIRES:
        refuse.apply_async((number,), countdown=3, expires=1)
    if number % 7 == 0:
        refuse.delay(number)
    elif number % 7 == 1:
        for part in range(3):
            point.delay(number, part)
    elif number % 7 == 2:
        waive.delay(number)
