"""Guards around the hooks of a task class that Celery calls before the job can be claimed: ``before_start`` and a
``__call__`` of the project's. Their errors are written on the job's row before Celery hears of them."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from celery import Task
from celery.exceptions import Ignore

from reliable_jobs.compat.celery_run import NOTHING_FOLLOWS
from reliable_jobs.errors import CallNotReached
from reliable_jobs.run.trail import Trail, trail_of
from reliable_jobs.task import stages

#: Mark of a guard: whether the class has the hook itself.
GUARD = "_reliable_guard"


def guard(cls: type) -> None:
    """Put a guard around those hooks of a task class that Celery calls before the job can be claimed."""
    for name in ("before_start", "__call__"):
        hook = getattr(cls, name)
        # A function that Celery's and this package's own classes do not have. A guard is inherited as it is.
        known = (
            hook is getattr(Task, name) or hook.__module__ == "reliable_jobs.task.reliable_task" or hasattr(hook, GUARD)
        )
        if inspect.isfunction(hook) and not known:
            guarded = _guarded(hook, calls=name == "__call__")
            setattr(guarded, GUARD, "own" if name in vars(cls) else "inherited")
            setattr(cls, name, guarded)


def _guarded(hook: Callable[..., Any], *, calls: bool) -> Callable[..., Any]:
    """The hook; its errors are written on the job's row before Celery hears of them. ``calls``: it is ``__call__``."""

    @functools.wraps(hook)
    def guarded(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        trail = trail_of(request)
        if trail is None:
            if request.get("reliable_bundle") is None:
                return hook(self, *args, **kwargs)
            return _in_bundle(hook, self, *args, **kwargs)
        trail.depth += 1
        value = None
        try:
            trail.show_following(request)
            with _claimed(self, trail):
                value = hook(self, *args, **kwargs)
            if calls and trail.depth == 1 and not trail.reached:
                raise CallNotReached(
                    f"{type(self).__qualname__}.__call__ returned without calling super().__call__(): the job was "
                    "neither claimed nor settled. Call super().__call__(*args, **kwargs), or use before_start()."
                )
        except BaseException as error:
            if trail.depth > 1 or stages.outcomes.ends_process(error):
                raise
            if trail.answer is None and not trail.reached:
                stages.unreported_errors.write_failure(self, trail, error)
            elif trail.answer is not None and error is not trail.answer[1]:
                stages.unreported_errors.note(self, error)
            else:
                raise
        finally:
            trail.depth -= 1
            request.update(NOTHING_FOLLOWS)
        if trail.depth == 0 and trail.answer is not None:
            # What the row says stands, though the hook may have caught an error on the way.
            told, ended = trail.answer
            if ended is not None:
                raise ended
            return told if value is None else value  # a __call__ may change the value for the backend
        return value

    return guarded


@contextlib.contextmanager
def _claimed(task: Any, trail: Trail) -> Iterator[None]:
    """Around the outermost hook: it may kill the process, and its start must have been counted."""
    if trail.depth > 1 or trail.reached:
        yield
        return
    if trail.run is None:
        stages.delivery.claim_early(task, trail)
    if trail.run is None:
        yield
        return
    with stages.lease.kept_alive(trail.run):
        yield


def _in_bundle(hook: Callable[..., Any], self: Any, /, *args: Any, **kwargs: Any) -> Any:
    """An error breaks the bundle up, and the job runs alone; the failure hooks fire then, once."""
    try:
        return hook(self, *args, **kwargs)
    except Ignore:
        raise
    except Exception as error:
        raise Ignore(f"run alone after {type(error).__name__}") from error
