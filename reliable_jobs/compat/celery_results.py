"""Celery: result backends, and ``AsyncResult``. Needs no loaded apps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from celery.result import AsyncResult

from reliable_jobs.compat.celery import CELERY

with CELERY.importing():
    from celery.backends.asynchronous import AsyncBackendMixin
    from celery.backends.base import DisabledBackend
    from celery.utils.functional import arity_greater

from reliable_jobs.compat.celery_backend import AnsweringBackend, wrapped_by


@CELERY.undocumented(
    "Backend.on_task_call",
    at="celery.backends.base:Backend.on_task_call",
    takes=("producer", "task_id"),
    tests=["test_results"],
)
def leave_unsubscribed(backend: Any, producer_class: type) -> None:
    """Make a result backend do nothing at a call whose producer is of a class. Redis would subscribe to the result, and
    ``rpc://`` declare a reply queue, over the network and before the row is written.
    """
    backend = wrapped_by(backend)
    if isinstance(backend, AsyncBackendMixin) and "on_task_call" not in vars(backend):
        vars(backend)["on_task_call"] = functools.partial(_unless, producer_class, backend.on_task_call)


def _unless(producer_class: type, on_task_call: Any, producer: Any, task_id: str) -> Any:
    return {} if isinstance(producer, producer_class) else on_task_call(producer, task_id)


@CELERY.undocumented("Celery.backend_cls", at="celery.app.base:Celery.backend_cls", tests=["test_ledger_backend"])
@CELERY.undocumented(
    "Celery._backend_cache", "Celery._local", inside="celery.app.base:Celery._backend", tests=["test_ledger_backend"]
)
def make_backends_by(app: Any, maker: Callable[[str | None, Any], Callable[..., Any]]) -> None:
    """Have an app make its result backends in another way from now on. Once is enough; more does no harm.

    Args:
        maker: called with what the app would make them of, and the app; returns a class, or what can be called like it.
    """
    if not isinstance(app.backend_cls, _MadeBy):
        app.backend_cls = _MadeBy(app.backend_cls, maker)
    made = app._backend_cache or getattr(app._local, "backend", None)
    if made is not None and not isinstance(made, AnsweringBackend):
        app._backend_cache = app._local.backend = None  # too early


class _MadeBy:
    """Stands for the class of an app's result backends. Can be pickled, with the app."""

    def __init__(self, configured: Any, maker: Callable[..., Any]) -> None:
        self.configured, self.maker = configured, maker

    def __contains__(self, text: object) -> bool:
        return False  # Celery 5.5.0 looks for "://" in whatever it makes backends of

    def __call__(self, app: Any, url: str | None = None) -> Any:
        return self.maker(self.configured or app.conf.result_backend, app)


@CELERY.undocumented("Task._backend", at="celery.app.task:Task._backend", tests=["test_ledger_backend"])
def take_own_backend(cls: Any) -> None:
    """Where a task class has a ``backend`` of its own, let the property of its base class find it."""
    own = vars(cls).get("backend")
    if own is not None and not isinstance(own, property):
        cls._backend = own
        del cls.backend


@CELERY.undocumented("Task._backend", at="celery.app.task:Task._backend", tests=["test_testing"])
@CELERY.undocumented("base.DisabledBackend", at="celery.backends.base:DisabledBackend", tests=["test_testing"])
@contextlib.contextmanager
def without_backend(task: Any) -> Iterator[None]:
    """Inside, a task has no result backend; afterwards its own again, or the app's."""
    own = vars(task).get("_backend")
    task.backend = DisabledBackend(task.app)
    try:
        yield
    finally:
        task.backend = own


@CELERY.undocumented(
    "Backend.get_task_meta",
    at="celery.backends.base:Backend.get_task_meta",
    takes=("task_id",),
    tests=["test_results"],
)
def stored_result(backend: Any, task_id: str) -> dict[str, Any]:
    """What a result backend knows of a task; {} if it is none that can be asked."""
    try:
        return dict(backend.get_task_meta(task_id))
    except (AttributeError, NotImplementedError):
        return {}


@CELERY.undocumented(
    "functional.arity_greater",
    at="celery.utils.functional:arity_greater",
    takes=("fun", "n"),
    tests=["test_followups"],
)
@CELERY.undocumented("Task.__header__", inside="celery.app.task:Task.apply_async", tests=["test_followups"])
@CELERY.undocumented(
    "Backend._errback_arity_greater",
    inside="celery.backends.base:Backend._call_task_errbacks",
    since="5.7",
    tests=["test_followups"],
)
def is_new_errback(app: Any, errback: Any) -> bool:
    """Whether Celery calls an errback with request, exception and traceback, and not as a task with the failed one's
    id. It looks at the arguments that the function takes; one that is not known here gets the id."""
    if errback.get("subtask_type") is not None or errback.task not in app.tasks:
        return False
    header = getattr(app.tasks[errback.task], "__header__", None)
    if header is None or isinstance(header, functools.partial):  # of a bound task
        return False
    counts = getattr(app.backend, "_errback_arity_greater", None)
    return bool(arity_greater(header, 1) if counts is None else counts(errback, 1))


@CELERY.undocumented(
    "AsyncResult._get_task_meta",
    at="celery.result:AsyncResult._get_task_meta",
    tests=["test_promise_3_exactly_once_effects", "test_results"],
)
@CELERY.undocumented(
    "AsyncResult._cache",
    "AsyncResult._maybe_set_cache",
    inside="celery.result:AsyncResult._get_task_meta",
    tests=["test_results"],
)
@CELERY.undocumented("AsyncResult._parents", at="celery.result:AsyncResult._parents", tests=["test_results"])
@CELERY.undocumented("AsyncResult.__del__", at="celery.result:AsyncResult.__del__", tests=["test_results"])
class AnsweredResult(AsyncResult):
    """An ``AsyncResult`` whose backend is made when one looks: Celery makes one in each thread, which under ASGI may
    mean for each request.
    """

    #: A reliable task's: tells which chords are ours.
    of_reliable_task = True
    _made: Any = None

    def ledger(self, backend: Any) -> Any:
        """The backend that answers, around the one that was given."""
        raise NotImplementedError

    def is_known(self) -> bool:
        """Look; says whether the end is known and kept."""
        self._get_task_meta()
        return self._cache is not None

    def ancestors(self) -> Iterator[Any]:
        yield from self._parents()

    @property
    def backend(self) -> Any:
        if isinstance(self._made, OfTask):
            self._made = self._made.task.backend
        if self._made is not None:
            self._made = self.ledger(self._made)
        return self._made

    @backend.setter
    def backend(self, backend: Any) -> None:
        self._made = backend

    def __del__(self) -> None:
        if not isinstance(self._made, OfTask):
            super().__del__()


class OfTask:
    """Stands for a task's result backend until it is asked for."""

    def __init__(self, task: Any) -> None:
        self.task = task
