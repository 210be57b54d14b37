"""Background jobs for Django on top of Celery that are not lost, doubled or silently dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliable_jobs.adopted import AdoptedTask
    from reliable_jobs.task import DayLongTask, ReliableTask, RetriedTask, TenHourTask

__version__ = "0.1.0"
__all__ = ["AdoptedTask", "DayLongTask", "ReliableTask", "RetriedTask", "TenHourTask"]


def __getattr__(name: str) -> Any:
    # task.py imports models, which Django allows only once its apps are loaded; this package is imported before.
    if name in __all__:
        from reliable_jobs import adopted, task

        return getattr(adopted if name == "AdoptedTask" else task, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
