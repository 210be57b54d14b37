"""The app of a worker whose queue is deleted while it starts: ``celery -A tests.worker.queue_gone worker``.

The first thing that Celery's event loop does is to read one frame, and to swallow what that raises: the broker's word
that the consumer was cancelled, too. Here the deletion falls into that moment.
"""

from __future__ import annotations

import select
from typing import Any

from celery.worker import loops

from tests.celery_app import app

__all__ = ["app"]

_quick_drain = loops._quick_drain


def _quick_drain_of_a_cancellation(connection: Any, *args: Any) -> None:
    loops._quick_drain = _quick_drain  # once
    with app.connection_for_write() as another:
        for queue in app.amqp.queues.consume_from:
            another.default_channel.queue_delete(queue)
    readable, _, _ = select.select([connection.connection.sock], [], [], 10)
    print("The queue is gone, and the broker has said so." if readable else "The broker says nothing.", flush=True)
    _quick_drain(connection, *args)


loops._quick_drain = _quick_drain_of_a_cancellation
