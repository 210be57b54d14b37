"""Celery: the methods of an app through which every message goes. Needs no loaded apps."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any, Protocol

from reliable_jobs.compat.celery import CELERY
from reliable_jobs.compat.celery_asked import backend_at
from reliable_jobs.compat.celery_results import make_backends_by

with CELERY.importing():
    from celery.canvas import chord, group


class Hooks(Protocol):
    """What workflow/capture.py answers."""

    def send_task(self, app: Any, below: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """``below`` is the app's own ``send_task``."""

    def producer_of_group(self, app: Any, below: Any) -> contextlib.AbstractContextManager[Any]:
        """A producer for the calls of a group. ``below`` is the app's own ``producer_or_acquire``."""


#: None until Django's apps are loaded: everything goes on to Celery then.
hooks: Hooks | None = None
#: Called with an adopted app that has all its tasks. None until Django's apps are loaded.
when_complete: Callable[[Any], None] | None = None


#: Puts the backend that answers around the configured one: of results/. None until Django's apps are loaded.
ledger: Callable[[Any, Any], Any] | None = None


def _result_backend(configured: Any, app: Any) -> Any:
    made = backend_at(configured, app)
    return made if ledger is None else ledger(made, app)


class ReliableApp:
    """Mixin for a project's own app class: what its workflows start becomes rows of the jobs' transactions.

    An app needs it only where its class overrides ``send_task`` or ``producer_or_acquire`` and must come first: any
    other app is given the same as soon as a reliable task is bound to it.

    Example::

        class App(ReliableApp, Celery):
            \"\"\"The project's.\"\"\"
    """

    #: Tells :func:`reliable_jobs.compat.celery.own_method` to look below this class.
    writes_rows = True

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: Any = None,
        eta: Any = None,
        task_id: Any = None,
        producer: Any = None,
        **options: Any,
    ) -> Any:
        """Celery's. Inside a unit of work the message becomes a row."""
        below: Any = super().send_task  # type: ignore[misc] # of the app class that stands behind this mixin
        return _send_task(self, below, name, args, kwargs, countdown, eta, task_id, producer, **options)

    def producer_or_acquire(self, producer: Any = None) -> Any:
        """Celery's. A group's calls get a producer that writes rows."""
        below: Any = super().producer_or_acquire  # type: ignore[misc] # as above
        return _producer_or_acquire(self, below, producer)


def adopt(app: Any) -> None:
    """Put the methods of :class:`ReliableApp` in front of an existing app's own, and the ledger around its result
    backend. Once is enough; more does no harm."""
    make_backends_by(app, _result_backend)
    app.on_after_finalize.connect(_complete, weak=False, dispatch_uid="reliable_jobs.complete")
    if isinstance(app, ReliableApp):
        return
    for name, method in (("send_task", _send_task), ("producer_or_acquire", _producer_or_acquire)):
        known = vars(app).get(name)
        if isinstance(known, _InFront):
            continue
        vars(app)[name] = _InFront(app, name, method, known)


def _complete(sender: Any, **kwargs: Any) -> None:
    if when_complete is not None:
        when_complete(sender)


class _InFront:
    """An app's attribute in place of its method. The class's method is looked up at each call: what another library
    puts over it later counts."""

    def __init__(self, app: Any, name: str, method: Any, known: Any) -> None:
        self._app, self._name, self._method, self._known = app, name, method, known
        functools.update_wrapper(self, getattr(type(app), name))

    @property
    def below(self) -> Any:
        return self._known or getattr(type(self._app), self._name).__get__(self._app)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(self._app, self.below, *args, **kwargs)


def _send_task(
    app: Any,
    below: Any,
    name: str,
    args: Any = None,
    kwargs: Any = None,
    countdown: Any = None,
    eta: Any = None,
    task_id: Any = None,
    producer: Any = None,
    *more: Any,
    **options: Any,
) -> Any:
    if hooks is None or more:  # nobody gives a connection or a router by position
        return below(name, args, kwargs, countdown, eta, task_id, producer, *more, **options)
    given = {"countdown": countdown, "eta": eta, "task_id": task_id, "producer": producer}
    options.update({key: value for key, value in given.items() if value is not None})
    return hooks.send_task(app, below, name, args, kwargs, options)


def _producer_or_acquire(app: Any, below: Any, producer: Any = None) -> Any:
    if hooks is None or producer is not None or not _is_called_by_group():
        return below(producer)
    return hooks.producer_of_group(app, functools.partial(below, None))


@CELERY.undocumented(
    "canvas._chord",
    at="celery.canvas:_chord.run",
    takes=("header", "body", "partial_args"),
    tests=["test_mixed_chords"],
)
def header_of_chord() -> Any:
    """The header of the chord that is about to be called, a group of frozen signatures; None where none is. Its result
    backend is told the ids of the tasks, and not which tasks they are."""
    frame = sys._getframe(2)
    for _ in range(4):
        if frame.f_code.co_name == "run" and frame.f_globals.get("__name__") == chord.__module__:
            return frame.f_locals.get("header")
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


@CELERY.undocumented(
    "group._apply_tasks",
    at="celery.canvas:group._apply_tasks",
    takes=("tasks", "producer", "app"),
    tests=["test_capture"],
)
def _is_called_by_group() -> bool:
    """Whether the group is about to make its calls: it takes one producer for all of them, so that they are written
    together or not at all. Whoever else asks for a producer wants to publish, and gets a real one."""
    frame = sys._getframe(2)
    # Between them: the object that stands for the app's method, or a tracing library's wrapper.
    for _ in range(4):
        if frame.f_back is None:
            return False
        if frame.f_code.co_name == "_apply_tasks" and frame.f_globals.get("__name__") == group.__module__:
            return True
        frame = frame.f_back
    return False
