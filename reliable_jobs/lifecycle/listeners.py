"""Who else is told of transitions that no run makes: a person's, a sweeper's, a worker's without the code.

A copy of a row's state, such as another result backend's, would go on saying what the row no longer does.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterable

from reliable_jobs.compat.django_transaction import after_commit

_listeners: list[Callable[[list[uuid.UUID], str], None]] = []


def listen(listener: Callable[[list[uuid.UUID], str], None]) -> None:
    """Have a function called with the ids of jobs, and their database, after each commit of such transitions."""
    if listener not in _listeners:
        _listeners.append(listener)


def tell(ids: Iterable[uuid.UUID], using: str) -> None:
    """Call it in the transaction that makes the transitions."""
    changed = list(ids)
    if changed:
        for listener in _listeners:
            after_commit(functools.partial(listener, changed, using), using)
