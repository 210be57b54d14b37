"""Celery: the tracer of a run, the current task, and what a message says shall follow. Needs no loaded apps."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reliable_jobs.compat.billiard import described
from reliable_jobs.compat.celery import CELERY

with CELERY.importing():
    from celery import _state
    from celery.app import trace as app_trace
    from celery.utils.serialization import get_pickleable_etype, get_pickleable_exception


@CELERY.undocumented(
    "trace.build_tracer",
    at="celery.app.trace:build_tracer",
    takes=("name", "task", "loader", "hostname"),
    tests=["test_testing"],
)
def tracer_of(task: Any, app: Any, hostname: str) -> Callable[..., Any]:
    """Celery's tracer of a task, which a worker calls for each message: a test runs its jobs in it."""
    tracer: Callable[..., Any] = app_trace.build_tracer(task.name, task, app=app, hostname=hostname)
    return tracer


def unwatched(task: Any, tracer: Any) -> Any:
    """A task's tracer, made anew where something has wrapped the function that made it. New Relic's agent does, to see
    each task's call as a transaction, and the jobs that a call delivers would be parts of that one.

    Args:
        tracer: Celery's; None where it takes one back.
    """
    make = inspect.unwrap(app_trace.build_tracer)
    if tracer is None or make is app_trace.build_tracer:
        return tracer
    return make(task.name, task, loader=task.app.loader, app=task.app)


@CELERY.undocumented(
    "trace.trace_task",
    at="celery.app.trace:trace_task",
    takes=("task", "uuid", "args", "kwargs", "request"),
    tests=["test_bundle"],
)
def trace(task: Any, task_id: str, args: Any, kwargs: Any, request: dict[str, Any], app: Any) -> Any:
    """Run a job of a bundle as a worker runs a message: in Celery's own tracer. Returns its answer."""
    options = {"app": app, "loader": app.loader, "hostname": request["hostname"]}
    return app_trace.trace_task(task, task_id, args, kwargs, request, **options)


@CELERY.undocumented("trace.trace_ok_t", at="celery.app.trace:trace_ok_t", tests=["test_adversary"])
@CELERY.undocumented(
    "trace.TraceInfo",
    at="celery.app.trace:TraceInfo.__init__",
    takes=("state", "retval"),
    tests=["test_adversary"],
)
@CELERY.undocumented(
    "serialization.get_pickleable_exception",
    at="celery.utils.serialization:get_pickleable_exception",
    takes=("exc",),
    tests=["test_adversary"],
)
@CELERY.undocumented(
    "serialization.get_pickleable_etype",
    at="celery.utils.serialization:get_pickleable_etype",
    takes=("cls",),
    tests=["test_adversary"],
)
def answer_of_tracer(error: BaseException, state: str) -> Any:
    """What the tracer would have answered for an error, where it raised that instead of answering: the worker's parent
    process reads it, and would otherwise leave the message unacknowledged.
    """
    try:
        raise error  # where it has no traceback yet, billiard could not copy it
    except BaseException:
        info = described(internal=True)
    info.exception, info.type = get_pickleable_exception(error), get_pickleable_etype(type(error))
    return app_trace.trace_ok_t(info, app_trace.TraceInfo(state, error), 0.0, None)


@CELERY.undocumented("Task.request_stack", inside="celery.app.task:Task.push_request", tests=["test_unreported"])
@contextlib.contextmanager
def current_request(task: Any, request: Any) -> Iterator[None]:
    """Inside, a request is the task's current one."""
    task.request_stack.push(request)
    try:
        yield
    finally:
        task.request_stack.pop()


@CELERY.undocumented("_state._task_stack", at="celery._state:_task_stack", tests=["test_function"])
def in_other_thread() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Call it in a task's thread: what it returns makes the task, and its request, the current ones in the thread that
    enters it. An async function's event loop runs in a thread of its own."""
    task = _state._task_stack.top
    if task is None:
        return contextlib.nullcontext
    request = task.request

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        _state._task_stack.push(task)
        try:
            with current_request(task, request):
                yield
        finally:
            _state._task_stack.pop()

    return entered


#: Of a request: nothing is to follow its job.
NOTHING_FOLLOWS: Mapping[str, Any] = {"callbacks": None, "errbacks": None, "chain": None}


@CELERY.undocumented(
    "Context.callbacks",
    "Context.chain",
    inside="celery.app.trace:build_tracer",
    tests=["test_canvas", "test_followups"],
)
@CELERY.undocumented(
    "Context.errbacks", inside="celery.backends.base:Backend.mark_as_failure", tests=["test_followups"]
)
def put_on(request: Any, following: Mapping[str, Any]) -> None:
    """Put what is to follow a job on its request, or take it off (:data:`NOTHING_FOLLOWS`). The tracer reads it there
    after a task function, and would dispatch what is written with the settlement once more."""
    request.update({name: following[name] for name in NOTHING_FOLLOWS})
