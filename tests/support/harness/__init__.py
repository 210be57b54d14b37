"""Real workers, producers and beats around a database and a broker of the test's own.

A `Stack` is one database (made and migrated once) and one queue. While it is active, this process's Django and Celery
use them too, so that a test enqueues, sweeps and looks at rows as an application would. Every process is started in a
process group of its own, waited for by a condition, and ended by its id.
"""

from __future__ import annotations

from tests.support.harness.process import Process, Worker
from tests.support.harness.stack import Stack
from tests.support.harness.transaction import Transaction
from tests.support.harness.waiting import BROKER_URL, DATABASE_URL, PATIENCE, ROOT, lines, server_urls, wait_until

__all__ = [
    "BROKER_URL",
    "DATABASE_URL",
    "PATIENCE",
    "ROOT",
    "Process",
    "Stack",
    "Transaction",
    "Worker",
    "lines",
    "server_urls",
    "wait_until",
]
