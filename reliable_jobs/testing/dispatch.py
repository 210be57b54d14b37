"""Keeping the broker out of tests, and the order in which tests see rows."""

from __future__ import annotations

from typing import Any

from django.conf import settings as django_settings
from django.db import connections
from django.db.models.expressions import RawSQL
from django.test import override_settings


def override_dispatch(mode: str = "relay", **others: Any) -> override_settings:
    """Keep the broker out: enqueues write their rows and publish nothing. Context manager, or decorator of a test
    function or of a Django ``TestCase`` class.

    Args:
        mode: ``"relay"``; or ``"on_commit"`` to switch dispatch on again for a part of a test.
        others: further keys of ``RELIABLE_JOBS``.

    Example::

        with override_dispatch():
            send_receipt.delay(order.pk)
    """
    given = dict(getattr(django_settings, "RELIABLE_JOBS", {}))
    return override_settings(RELIABLE_JOBS={**given, "DISPATCH": mode, **others})


def in_order(rows: Any, column: str) -> Any:
    """Rows by a time, and those of the same time as they were written."""
    # SQLite's clock has milliseconds: rows of the same one in the order of their insertion, as a test expects.
    tie: Any = RawSQL("rowid", []) if connections[rows.db].vendor == "sqlite" else "pk"
    return rows.order_by(column, "created_at", tie)
