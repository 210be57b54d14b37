"""A task's function: whether arguments fit it, and the call of it. It is an ordinary one, an ``async def``, or a
generator that would never run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, NoReturn

from asgiref.sync import async_to_sync
from celery import Task
from kombu.utils.compat import detect_environment

from reliable_jobs.compat.celery import argument_check, argument_check_of, check_arguments_by, checked_class
from reliable_jobs.compat.celery_run import in_other_thread
from reliable_jobs.errors import InvalidOption

#: What a call returns of a function that has not run yet.
UNFINISHED = (CoroutineType, GeneratorType, AsyncGeneratorType)


class Function:
    """The half of a task that knows its function."""

    name: Any
    typing: Any
    #: Whether the task function has a ``yield``: calling one runs nothing of it.
    is_generator = False
    #: Raises TypeError where arguments don't fit the task function. Set with each class: see :func:`adopt`.
    argument_check: Callable[..., Any] | None = None

    def _refuse_generator(self) -> NoReturn:
        raise InvalidOption(
            f"{self.name} is a generator function (it has a yield), so a worker's call would run nothing of it. "
            "Use a loop in the function, or return a list."
        )

    def _check_arguments(self, args: Any, kwargs: Any) -> None:
        """As Celery does at the call, unless the task has ``typing = False``. Raises TypeError."""
        if self.argument_check is not None and self.typing:
            self.argument_check(*args, **kwargs)

    def misfit(self, args: Any, kwargs: Any) -> str | None:
        """Why these arguments don't fit the code at hand; None when they do, or the task has ``typing = False``."""
        try:
            self._check_arguments(args, kwargs)
        except TypeError as error:
            return str(error)
        return None

    def value_of(self: Any, args: Any, kwargs: Any) -> Any:
        """Run the task function and return its value. An ``async def`` is waited for.

        Raises:
            TypeError: it is a generator function, which a decorator had hidden; nothing of it has run.
        """
        returned = self.run(*args, **kwargs)
        if not isinstance(returned, UNFINISHED):
            return returned
        if inspect.iscoroutine(returned):
            return finished(returned)
        raise TypeError(
            f"{self.name} returned a generator, so nothing of it has run. Use a loop in the function, or return a list."
        )


def adopt(cls: Any) -> None:
    """Prepare a task class whose ``run`` is its own or comes from a mixin: arguments are checked against that function,
    a generator is marked, and an ``async def`` becomes one that waits for its end."""
    owner = _owner(cls, "run")
    run = vars(owner)["run"]
    function, bound = (run.__func__, False) if isinstance(run, staticmethod) else (run, True)
    cls.is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if (check := argument_check_of(cls)) is not None:
        cls.argument_check = staticmethod(check)
    if owner is Task or not inspect.isfunction(function) or not function.__name__.isidentifier():
        return
    order = cls.__mro__
    if order.index(owner) < order.index(checked_class(cls)):
        # Celery makes the check for decorated functions only.
        check_arguments(cls, function, bound=bound)
    if _is_async(function):
        waits = _that_waits(function)
        cls.run = waits if bound else staticmethod(waits)


def check_arguments(cls: Any, function: Callable[..., Any], *, bound: bool) -> None:
    """Have calls and runs of a task class check their arguments against a function."""
    check = argument_check(function, bound=bound)
    check_arguments_by(cls, check)
    cls.argument_check = staticmethod(check)


def _owner(cls: type, name: str) -> type:
    return next((one for one in cls.__mro__ if name in vars(one)), object)


def _is_async(function: Any) -> bool:
    """A wrapper (pydantic's, a decorator) is not itself a coroutine function, but returns what one returns."""
    while function is not None:
        if getattr(function, "_reliable_waits", False):
            return False
        if inspect.iscoroutinefunction(function):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _that_waits(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def waits(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        return value if not inspect.isawaitable(value) or _in_event_loop() else finished(value)

    vars(waits)["_reliable_waits"] = True
    return waits


def _in_event_loop() -> bool:
    """Whether async code calls the task directly; it awaits what it gets."""
    with contextlib.suppress(RuntimeError):
        return asyncio.get_running_loop() is not None
    return False


def finished(awaitable: Awaitable[Any]) -> Any:
    """Wait for the end of an ``async def``, and return its value or raise its error.

    It runs in an event loop in a thread of its own; the current task and its request are the same there. What it awaits
    of Django's async ORM runs in this thread, so in the transaction that is open here.

    Raises:
        RuntimeError: under gevent or eventlet, whose greenlets share one event loop.
    """
    environment = detect_environment()
    if environment != "default":
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError(
            f"async def can't run under {environment}. Use the prefork, threads or solo pool for this task's queue, or "
            "write it as an ordinary function."
        )
    running: list[Any] = []
    as_here = in_other_thread()

    async def run() -> Any:
        running.extend((asyncio.get_running_loop(), asyncio.current_task()))
        with as_here():
            return await awaitable

    try:
        return async_to_sync(run, force_new_loop=True)()
    except BaseException:
        if running and not running[1].done():
            # A soft time limit arrives in this thread; it ends the coroutine too.
            with contextlib.suppress(RuntimeError):
                running[0].call_soon_threadsafe(running[1].cancel)
        raise
