"""The app of this process with another result backend, for a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.celery_app import app

LEDGER = "reliable_jobs.results:LedgerBackend"


def use_backend(url: str | None) -> Any:
    """Have the app configured with another result backend from now on; returns it."""
    app.conf.result_backend = url
    app.conf["CELERY_RESULT_BACKEND"] = url  # up to Celery 5.5 the name as it stands in Django's settings wins
    app._backend_cache = app._local.backend = None
    return app.backend


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
