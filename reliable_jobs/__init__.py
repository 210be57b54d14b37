"""Background jobs for Django on top of Celery that are not lost, doubled or silently dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliable_jobs.task.adopted_task import AdoptedTask
    from reliable_jobs.task.reliable_task import DayLongTask, ReliableTask, RetriedTask, TenHourTask

__version__ = "0.1.0"
__all__ = ["AdoptedTask", "DayLongTask", "ReliableTask", "RetriedTask", "TenHourTask"]


def __getattr__(name: str) -> Any:
    # Not at the top: every import of a module in here imports this file first.
    if name in __all__:
        from reliable_jobs.task import adopted_task, reliable_task

        return getattr(adopted_task if name == "AdoptedTask" else reliable_task, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
