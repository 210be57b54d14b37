"""``@reliable_task``: Celery's ``@shared_task(base=ReliableTask)`` with types."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, Literal, Protocol, TypeVar, overload

from celery import shared_task

from reliable_jobs.task.reliable_task import ReliableTask
from reliable_jobs.task_types import RunP, RunR_co

if TYPE_CHECKING:
    import typing_extensions

    #: Left out, it is ReliableTask.
    Base = typing_extensions.TypeVar("Base", bound=ReliableTask[..., Any], default=ReliableTask[..., Any])
else:
    Base = TypeVar("Base")

T = TypeVar("T")
Base_co = TypeVar("Base_co", covariant=True)


# The worker waits for an ``async def``, so the result of its job is what it comes to.


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[RunP, Coroutine[Any, Any, T]], /) -> ReliableTask[RunP, T]: ...

    @overload
    def __call__(self, function: Callable[RunP, RunR_co], /) -> ReliableTask[RunP, RunR_co]: ...


class _BoundDecorator(Protocol[Base_co]):
    # The function's first argument is the task; callers do not pass it.
    @overload
    def __call__(
        self, function: Callable[Concatenate[Base_co, RunP], Coroutine[Any, Any, T]], /
    ) -> ReliableTask[RunP, T]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Base_co, RunP], RunR_co], /) -> ReliableTask[RunP, RunR_co]: ...


@overload
def reliable_task(function: Callable[RunP, Coroutine[Any, Any, T]], /) -> ReliableTask[RunP, T]: ...


@overload
def reliable_task(function: Callable[RunP, RunR_co], /) -> ReliableTask[RunP, RunR_co]: ...


@overload
def reliable_task(
    *,
    bind: Literal[False] = False,
    base: type[ReliableTask[..., Any]] = ...,
    name: str | None = None,
    atomic: bool = ...,
    reruns: bool = ...,
    retry_window: float | None = ...,
    bundle: int = ...,
    sensitive: bool | Iterable[str] = ...,
    **options: Any,
) -> _Decorator: ...


@overload
def reliable_task(
    *,
    bind: Literal[True],
    base: type[Base] = ...,
    name: str | None = None,
    atomic: bool = ...,
    reruns: bool = ...,
    retry_window: float | None = ...,
    bundle: int = ...,
    sensitive: bool | Iterable[str] = ...,
    **options: Any,
) -> _BoundDecorator[Base]: ...


def reliable_task(function: Any = None, /, **options: Any) -> Any:
    """Make a function a reliable task: Celery's ``shared_task`` with ``base=ReliableTask``, and nothing else. Type
    checkers learn the arguments of ``delay()`` and the type of the result from the function, with or without the
    package celery-types.

    Args:
        function: the task function. Left out, a decorator with these options is returned.
        options: all of ``shared_task``: ``bind``, ``name``, ``queue``, ``max_retries`` … and the attributes of
            :class:`~reliable_jobs.task.reliable_task.ReliableTask`. ``base`` is a subclass of it.

    Returns:
        The task. Type checkers see a :class:`~reliable_jobs.task.reliable_task.ReliableTask`, whatever its ``base`` is.

    Raises:
        TypeError: ``base`` is not a subclass of ``ReliableTask``.

    Example::

        @reliable_task
        def send_receipt(order_id: int) -> str: ...

        @reliable_task(bind=True, base=RetriedTask, atomic=False)
        def charge(self: RetriedTask, order_id: int) -> None: ...

        send_receipt.delay(7)
    """
    base = options.setdefault("base", ReliableTask)
    if not (isinstance(base, type) and issubclass(base, ReliableTask)):
        raise TypeError(f"reliable_task(base={base!r}): the base must be ReliableTask or a subclass of it.")
    return shared_task(**options) if function is None else shared_task(function, **options)
