"""Celery: what a group asks of result backends while it makes its calls. Needs no loaded apps."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


class _Calls(threading.local):
    #: The results of a group's calls that are being made in this thread, with their backends.
    results: list[tuple[Any, Any]] | None = None


_calls = _Calls()


def holds(backend: Any, result: Any) -> bool:
    """Whether a group's calls are being made, and the backend is not to be asked for this result yet."""
    if _calls.results is None:
        return False
    _calls.results.append((backend, result))
    return True


@contextlib.contextmanager
def holding_subscriptions() -> Iterator[Callable[[], None]]:
    """Around the calls of a group, which ask a backend such as Redis for news of each result as soon as it is called:
    over the network, and perhaps in a transaction. Gives what asks it after all. Without that it is asked by get()."""
    outer, results = _calls.results, list[tuple[Any, Any]]()

    def subscribe() -> None:
        _calls.results = outer
        for backend, result in results:
            backend.add_pending_result(result, weak=True)

    _calls.results = results
    try:
        yield subscribe
    finally:
        _calls.results = outer
