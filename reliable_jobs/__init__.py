"""Background jobs for Django on top of Celery that are not lost, doubled or silently dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["AdoptedTask", "DayLongTask", "ReliableApp", "ReliableTask", "RetriedTask", "TenHourTask", "reliable_task"]

if TYPE_CHECKING:
    from reliable_jobs.compat.celery_app import ReliableApp
    from reliable_jobs.task.adopted_task import AdoptedTask
    from reliable_jobs.task.decorator import reliable_task
    from reliable_jobs.task.reliable_task import DayLongTask, ReliableTask, RetriedTask, TenHourTask
else:
    # Hidden from type checkers, which would take any name for one of these.
    def __getattr__(name):
        # Not at the top: every import of a module in here imports this file first.
        if name in __all__:
            from reliable_jobs.compat import celery_app
            from reliable_jobs.task import adopted_task, decorator, reliable_task

            homes = {"AdoptedTask": adopted_task, "ReliableApp": celery_app, "reliable_task": decorator}
            return getattr(homes.get(name, reliable_task), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
