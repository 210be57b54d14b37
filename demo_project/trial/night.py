"""A bad night for ``make serve``: one job of every kind that somebody is woken by."""

from __future__ import annotations

import datetime
import uuid

from celery import chord

from demo_project.shop import chores
from demo_project.trial.processes import Fleet
from reliable_jobs import jobs
from reliable_jobs.models import Job

#: Who did it, in the jobs' history.
PERSON = "demo"


def begin(fleet: Fleet) -> None:
    """Enqueue it all. What the worker makes of it shows within seconds."""
    for product in ("anchor", "bell", "compass", "dinghy"):
        chores.update_search_index.bulk_delay([(f"{product} {number}",) for number in range(50)])
    for shelf in range(14):
        chores.sync_warehouse.delay(shelf)
    for currency in ("SEK", "NOK", "DKK"):
        chores.ask_exchange_rate.delay(currency)
    chores.render_catalogue.delay()
    chores.import_supplier.delay(3600)
    now = datetime.datetime.now(datetime.timezone.utc)
    for hours in (1, 8, 30):
        chores.update_search_index.apply_async((f"in {hours} hours",), countdown=3600 * hours)
    chores.update_search_index.apply_async(("too late",), expires=now - datetime.timedelta(minutes=1))
    jobs.pause(queue="newsletter", actor=PERSON, why="The provider counts each mail twice today.")
    for reader in range(40):
        chores.send_newsletter.apply_async((reader,), queue="newsletter")
    # A queue that nobody consumes.
    chores.update_search_index.apply_async(("nobody takes this",), queue="archive")
    # Half done: its last part waits for an hour.
    parts = [chores.count_stock.s(shelf) for shelf in range(6)]
    parts.append(chores.count_stock.s(6).set(countdown=3600))
    chord(parts, chores.report_stock.s()).delay()
    _unknown_task()
    # Dies without a word; the page Workers says when it was last seen.
    fleet.kill_worker(fleet.start_worker())


def _unknown_task() -> None:
    """A job whose code no worker has any more."""
    result = chores.update_search_index.apply_async(("a task of last year",), countdown=1)
    row = Job.objects.get(pk=result.id)
    name = "demo_project.shop.tasks.fold_paper_invoices"
    envelope = row.envelope.replace(row.task, name)
    Job.objects.filter(pk=uuid.UUID(result.id)).update(task=name, envelope=envelope)
