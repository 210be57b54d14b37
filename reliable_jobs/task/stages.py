"""The modules that a task leads to when it is called or run, imported at first use.

A project subclasses ReliableTask in its celery.py, which is imported before Django's apps are loaded; these modules
import models. So a task's own modules go through this one: ``stages.outbox.enqueue(…)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliable_jobs import databases, lifecycle, models, results
    from reliable_jobs.enqueue import bulk, insert, keys, outbox
    from reliable_jobs.run import delivery, lease, outcomes, state, tracing, unreported_errors
    from reliable_jobs.workflow import unit

__all__ = [
    "bulk",
    "databases",
    "delivery",
    "insert",
    "keys",
    "lease",
    "lifecycle",
    "models",
    "outbox",
    "outcomes",
    "results",
    "state",
    "tracing",
    "unit",
    "unreported_errors",
]


def __getattr__(name: str) -> Any:
    """Import them all, once.

    Raises:
        django.core.exceptions.AppRegistryNotReady: a task is called before Django is set up.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reliable_jobs import databases, lifecycle, models, results
    from reliable_jobs.enqueue import bulk, insert, keys, outbox
    from reliable_jobs.run import delivery, lease, outcomes, state, tracing, unreported_errors
    from reliable_jobs.workflow import unit

    imported = (
        bulk,
        databases,
        delivery,
        insert,
        keys,
        lease,
        lifecycle,
        models,
        outbox,
        outcomes,
        results,
        state,
        tracing,
        unit,
        unreported_errors,
    )
    globals().update(zip(__all__, imported, strict=True))
    return globals()[name]
