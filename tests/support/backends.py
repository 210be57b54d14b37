"""The app of this process with another result backend, for a time."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from celery.backends.redis import RedisBackend

from reliable_jobs.compat.celery_backend import wrapped_by
from tests.celery_app import app

LEDGER = "reliable_jobs.results:LedgerBackend"


def use_backend(url: str | None) -> Any:
    """Have the app configured with another result backend from now on; returns it."""
    app.conf.result_backend = url
    app.conf["CELERY_RESULT_BACKEND"] = url  # up to Celery 5.5 the name as it stands in Django's settings wins
    app._backend_cache = app._local.backend = None
    return app.backend


def stop_listening(backend: Any) -> None:
    """Close the connections by which ``rpc://`` or Redis tells this process of results. Left to the garbage collector,
    their sockets would warn in whichever test runs at that moment."""
    gc.collect()  # a result that goes later would take a new connection, to unsubscribe from its channel
    wrapped = wrapped_by(backend)
    consumer = getattr(wrapped, "result_consumer", None)
    with contextlib.suppress(AttributeError):  # no such thing, or nobody has waited
        consumer.stop()
    if isinstance(wrapped, RedisBackend):
        # What outlives this does not take another connection to unsubscribe: up to Celery 5.5 it would.
        wrapped.result_consumer._pubsub = None
        wrapped.client.connection_pool.disconnect()


@contextlib.contextmanager
def backend_of(url: str | None, made: Any = None) -> Iterator[Any]:
    """
    Args:
        made: the backend of that URL that was used before: two of ``rpc://`` would take each other's messages.
    """
    before = app.conf.result_backend
    try:
        use_backend(url)
        if made is not None:
            app._backend_cache = app._local.backend = made
        yield app.backend
    finally:
        use_backend(before)
