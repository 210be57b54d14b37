"""Celery: the method of an app through which every task message goes, and that of a group which makes its calls. Needs
no loaded apps."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from reliable_jobs.compat.celery import CELERY
from reliable_jobs.compat.celery_asked import backend_at
from reliable_jobs.compat.celery_groups import holding_subscriptions
from reliable_jobs.compat.celery_results import make_backends_by

with CELERY.importing():
    from celery.canvas import group


class Hooks(Protocol):
    """What workflow/capture.py answers."""

    def send_task(self, app: Any, below: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """``below`` is the app's own ``send_task``."""

    def calls_of_group(self, app: Any, group_id: str | None) -> contextlib.AbstractContextManager[Any]:
        """Entered around the calls of a group; gives the producer for them, whose ``are_rows`` says afterwards whether
        they have become rows. None: Celery's own producer."""


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

    An app needs it only where its class overrides ``send_task`` and must come first: any other app is given the same as
    soon as a reliable task is bound to it.

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


def adopt(app: Any) -> None:
    """Put the method of :class:`ReliableApp` in front of an existing app's own, and the ledger around its result
    backend. Once is enough; more does no harm."""
    make_backends_by(app, _result_backend)
    app.on_after_finalize.connect(_complete, weak=False, dispatch_uid="reliable_jobs.complete")
    if not _writes_rows(app):
        vars(app)["send_task"] = _InFront(app, "send_task", _send_task, vars(app).get("send_task"))


def _writes_rows(app: Any) -> bool:
    return isinstance(app, ReliableApp) or isinstance(vars(app).get("send_task"), _InFront)


def _complete(sender: Any, **kwargs: Any) -> None:
    if when_complete is not None:
        when_complete(sender)


class _InFront:
    """An app's attribute in place of its method. The class's method is looked up at each call: what another library
    puts over it later counts."""

    def __init__(self, app: Any, name: str, method: Any, known: Any) -> None:
        self._app, self._name, self._method = app, name, method
        #: What the app itself had there before; None where that was the class's method.
        self.covered = known
        functools.update_wrapper(self, getattr(type(app), name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        below = self.covered or getattr(type(self._app), self._name).__get__(self._app)
        return self._method(self._app, below, *args, **kwargs)


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


_celerys_apply_tasks = group._apply_tasks


@CELERY.undocumented(
    "group._apply_tasks",
    at="celery.canvas:group._apply_tasks",
    takes=("tasks", "producer", "app"),
    tests=["test_capture"],
)
def _apply_tasks(
    self: group, tasks: Any, producer: Any = None, app: Any = None, *more: Any, **options: Any
) -> Iterator[Any]:
    """Stands in front of the method with which every group makes its calls: where the group's app writes rows, they are
    written together or not at all. Not if the caller gives a producer, which is to publish. The app's methods can't do
    it: chains in a group drop the group's producer on their way."""
    app = app or self.app
    if hooks is None or producer is not None or not _writes_rows(app):
        yield from _celerys_apply_tasks(self, tasks, producer, app, *more, **options)
        return
    prepared = iter(tasks)
    first = list(itertools.islice(prepared, 1))
    tasks = itertools.chain(first, prepared)
    with holding_subscriptions() as subscribe:
        with hooks.calls_of_group(app, next((group_id for _, _, group_id in first), None)) as ours:
            yield from _celerys_apply_tasks(self, tasks, ours, app, *more, **options)
        if not getattr(ours, "are_rows", False):
            subscribe()


_apply_tasks.__wrapped__ = _celerys_apply_tasks  # type: ignore[attr-defined] # as functools.wraps: for who verifies it
group._apply_tasks = _apply_tasks
