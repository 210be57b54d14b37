"""Any work, once per key, without a reliable task."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TypeVar

from celery.exceptions import SoftTimeLimitExceeded
from django.db import transaction

from reliable_jobs.message import result_text
from reliable_jobs.message.row_to_message import as_key
from reliable_jobs.task import stages

T = TypeVar("T")


def once(key: str | int | uuid.UUID, work: Callable[[], T], *, scope: str, using: str | None = None) -> T:
    """Call ``work`` once per key, in one transaction with the receipt, and return its result; a further call returns
    the stored result and does nothing. It needs no reliable task, and no task at all.

    If ``work`` raises, nothing is kept and the next call tries again. A call that comes while another one works waits
    for it. Inside an open transaction the receipt commits, or is undone, with that.

    Args:
        key: what the work is about, as text 1 to 255 characters; a number is the same key as its text.
        work: called without arguments; must return what JSON takes.
        scope: what kind of work it is, up to 250 characters: the same key under another scope is other work.
        using: the database alias; by default that of the open transaction.

    Raises:
        ValueError: key or scope is empty, too long or of another type.
        TypeError: the result can't be stored as JSON; the work was undone.

    Returns:
        What ``work`` returned, now or at the first call.

    Example::

        @shared_task  # a plain Celery task
        def import_invoice(number: str) -> int:
            return once(number, lambda: book(number), scope="shop.import_invoice")

        import_invoice("2026-7")
    """
    text = as_key(key)
    if text is None or not 0 < len(scope) <= 250 or "\0" in scope:
        raise ValueError(
            f"once(): the key takes a text of 1 to 255 characters, a whole number or a UUID, and the scope 1 to 250 "
            f"characters, not {key!r}, {scope!r}."
        )
    alias = using or stages.databases.write_alias()
    name = f"once:{scope}"
    with transaction.atomic(using=alias):
        receipt, created = stages.lifecycle.take_receipt(name, text, alias)
        if not created:
            done: T = stages.results.result_of(receipt)
            return done
        value = work()
        try:
            data = result_text.encode(value, "json")
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            raise TypeError(
                f"once({key!r}): the result ({type(value).__name__}) can't be stored as JSON ({error}). Return plain "
                "data or an id. What the work did in the database was undone."
            ) from error
        stages.models.Job.objects.using(alias).filter(pk=receipt.pk).update(result=data)
        stored: T = result_text.decode(data)
        return stored
