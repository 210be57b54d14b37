"""What the folders below task/ know of a task, so that they need not import it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class RunnableTask(Protocol):
    """What a call and a run need of :class:`~reliable_jobs.task.reliable_task.ReliableTask`."""

    # Celery's own. ``request`` is an attribute of each thread; the types of Celery say nothing of either.
    app: Any
    name: Any
    request: Any
    request_stack: Any
    backend: Any
    default_retry_delay: Any
    ignore_result: Any
    shadow_name: Any
    time_limit: Any
    on_failure: Any
    _get_exec_options: Any

    # Ours; described where they are defined.
    atomic: bool
    reruns: bool
    sensitive: bool | Iterable[str]
    #: Kept by enqueue/template.py: what the calls of this task have in common.
    template: Any

    def value_of(self, args: Any, kwargs: Any) -> Any: ...

    def misfit(self, args: Any, kwargs: Any) -> str | None: ...

    def run_deadline(self) -> float: ...

    def secrets(self, args: Any, kwargs: Any) -> list[Any]: ...

    render_into: Any
