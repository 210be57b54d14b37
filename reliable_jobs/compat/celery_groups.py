"""Celery: what groups and chords ask of result backends while they make their calls. Needs no loaded apps."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from reliable_jobs.compat.celery import CELERY

with CELERY.importing():
    from celery.canvas import chord


class _Calls(threading.local):
    #: The results of a group's calls that are being made in this thread, with their backends.
    results: list[tuple[Any, Any]] | None = None
    #: The header of the chord that is being called in this thread.
    header: Any = None


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


def header_of_chord() -> Any:
    """The header of the chord that is being called in this thread, a group of frozen signatures; None where none is."""
    return _calls.header


_celerys_run = chord.run


@CELERY.undocumented(
    "canvas._chord",
    at="celery.canvas:_chord.run",
    takes=("header", "body", "partial_args"),
    tests=["test_mixed_chords"],
)
def _run(self: chord, header: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in front of the method with which every chord is called, and keeps the header meanwhile: the result
    backend is told the ids of the header's tasks, and not which tasks they are."""
    outer, _calls.header = _calls.header, header
    try:
        return _celerys_run(self, header, *args, **kwargs)
    finally:
        _calls.header = outer


_run.__wrapped__ = _celerys_run  # type: ignore[attr-defined] # as functools.wraps: for who verifies it
chord.run = _run
