import os
import time

from celery import shared_task
from django.conf import settings

from reliable_jobs import ReliableTask
from shop.models import Entry


def work(number):
    """Half of an order's work; who does it is noted in a file."""
    with open(settings.BASE_DIR / "work.log", "a") as log:
        log.write(f"{os.getpid()} {number}\n")
    time.sleep(settings.WORK_SECONDS)


@shared_task(base=ReliableTask)
def book(number):
    Entry.objects.create(number=number, what="booked")
    work(number)


@shared_task(base=ReliableTask, bind=True, max_retries=3)
def pay(self, number):
    Entry.objects.create(number=number, what="paid")
    if self.request.retries == 0:
        raise self.retry(countdown=1)


@shared_task(base=ReliableTask)
def remind(number):
    Entry.objects.create(number=number, what="reminded")


@shared_task(base=ReliableTask)
def receipt(number):
    Entry.objects.create(number=number, what="receipt")


@shared_task(base=ReliableTask)
def item(number, position):
    Entry.objects.create(number=number, what=f"item {position}")


@shared_task(base=ReliableTask)
def pack(number):
    Entry.objects.create(number=number, what="packed")
    return number


@shared_task(base=ReliableTask)
def label(number):
    Entry.objects.create(number=number, what="labelled")
    return number


@shared_task(base=ReliableTask)
def weigh(number):
    Entry.objects.create(number=number, what="weighed")
    return number


@shared_task(base=ReliableTask)
def ship(numbers):
    number, again = numbers  # of the label and of the scales
    assert number == again
    Entry.objects.create(number=number, what="shipped")


@shared_task(base=ReliableTask, bind=True, atomic=False, time_limit=600)
def charge(self, number):
    work(number)
    with self.fenced():
        Entry.objects.get_or_create(number=number, what="charged")


@shared_task(base=ReliableTask)
def invoice(number):
    Entry.objects.create(number=number, what="invoiced")
    mail.delay(number)


@shared_task(base=ReliableTask)
def mail(number):
    Entry.objects.create(number=number, what="mailed")
