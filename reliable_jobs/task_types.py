"""Types alone (``typing.Protocol``): what the layers under task/ know of a task, so that they need not import it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeVar

    #: The arguments of a task, and what its function returns. Left out, they are anything.
    P = ParamSpec("P", default=...)
    R_co = TypeVar("R_co", covariant=True, default=Any)
else:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R_co = TypeVar("R_co", covariant=True)

#: The worker's request of each task's message; the name that Celery finds it by.
REQUEST = "reliable_jobs.worker.requests:ReliableRequest"

#: The same, read from the ``run`` of whatever class the task has.
RunP = ParamSpec("RunP")
RunR_co = TypeVar("RunR_co", covariant=True)


class Runs(Protocol[RunP, RunR_co]):
    """Something with a ``run``: how type checkers learn the arguments of a class-based task's ``delay()``."""

    def run(self, *args: RunP.args, **kwargs: RunP.kwargs) -> RunR_co: ...


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
    soft_time_limit: Any
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
