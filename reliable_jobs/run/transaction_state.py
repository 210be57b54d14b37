"""What a task function has left of the transaction of its run."""

from __future__ import annotations

import contextlib
from typing import Any

from django.db import connections

from reliable_jobs.compat.django import driver_of
from reliable_jobs.compat.django_transaction import was_closed, will_roll_back
from reliable_jobs.run.state import Run


def is_cut_off(run: Run) -> bool:
    """Whether the task function closed the connection of its transaction, or put another one in its place:
    ``connection.connect()`` resets Django's books, so that they show no transaction at all. A session that was left
    open so is closed: it holds the row's lock."""
    connection: Any = connections[run.claim.using]
    if run.session is None or driver_of(connection) is run.session:
        return bool(was_closed(connection))
    with contextlib.suppress(Exception):
        run.session.close()
    return True


def check_deferred_constraints(connection: Any) -> None:
    """Deferred constraints fail at the outer COMMIT, behind every savepoint; here it is the function's failure."""
    if connection.vendor == "postgresql" and not will_roll_back(connection):
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
