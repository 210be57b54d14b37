"""Celery: the app, and what a call of a task goes through.

Needs no loaded apps: a task's base class is made before Django is set up.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from celery import signals
from celery.app import amqp as app_amqp
from celery.app import base as app_base
from celery.app import task as app_task

from reliable_jobs.compat.register import Library

CELERY = Library("Celery", "celery", tried="5.5 to 5.7")

with CELERY.importing():
    from celery import _state
    from celery.app import routes as app_routes
    from celery.app.routes import MapRoute
    from celery.backends.asynchronous import AsyncBackendMixin
    from celery.backends.base import Backend
    from celery.utils.functional import head_from_fun
    from celery.utils.saferepr import saferepr
    from celery.utils.time import maybe_iso8601, maybe_make_aware

# --- the app ----------------------------------------------------------------------------------------------------------


@CELERY.undocumented(
    "_state._tls",
    "_state.default_app",
    inside="celery._state:_get_current_app",
    tests=["test_checks"],
)
@CELERY.undocumented("Celery.fixups", inside="celery.app.base:Celery.__init__", tests=["test_checks"])
def configured_app() -> Any:
    """The project's Celery app; None where only Celery's fallback exists, or nothing yet: ``current_app`` would create
    the fallback.

    The fallback is known by what Celery makes it of: the name "default", and no fixup for Django.
    """
    app = _state._tls.current_app or _state.default_app
    return None if app is None or (app.main == "default" and not app.fixups) else app


@CELERY.undocumented("Celery.backend_cls", at="celery.app.base:Celery.backend_cls", tests=["test_template"])
def parts_of_calls(app: Any) -> tuple[Any, ...]:
    """What Celery has read once from its configuration, and makes each call's message with. The last is what an app
    makes its result backends of; to ask for the backend makes one, in each new thread."""
    amqp = app.amqp
    return amqp, amqp.send_task_message, amqp.router, amqp.default_queue, app.backend_cls


reply_address = CELERY.attribute(
    "Celery.thread_oid",
    "What Celery writes into ``reply_to`` of a call made in this thread.",
    at="celery.app.base:Celery.thread_oid",
    tests=["test_template"],
)


# --- a call -----------------------------------------------------------------------------------------------------------


@CELERY.undocumented(
    "functional.head_from_fun",
    at="celery.utils.functional:head_from_fun",
    takes=("fun", "bound"),
    tests=["test_task"],
)
def argument_check(function: Any, *, bound: bool) -> Callable[..., Any]:
    """A function that raises TypeError, in Python's words, where arguments don't fit a task's function."""
    check: Callable[..., Any] = head_from_fun(function, bound=bound)
    return check


@CELERY.undocumented(
    "Task.__header__",
    inside="celery.app.task:Task.apply_async",
    tests=["test_promise_7_no_silent_discard", "test_function"],
)
def check_arguments_by(cls: Any, check: Callable[..., Any]) -> None:
    """Have ``apply_async`` check the arguments of a task class's calls: Celery does it for decorated functions only."""
    cls.__header__ = staticmethod(check)


@CELERY.undocumented(
    "Task.__header__",
    inside="celery.app.task:Task.apply_async",
    tests=["test_promise_7_no_silent_discard"],
)
def argument_check_of(cls: Any) -> Callable[..., Any] | None:
    """The check of its arguments that the ``apply_async`` of a task class makes, for a worker and a bulk of calls to
    make too."""
    check: Callable[..., Any] | None = getattr(cls, "__header__", None)
    return check


def checked_class(cls: type) -> type:
    """The nearest class that brings a check of arguments."""
    return next((one for one in cls.__mro__ if "__header__" in vars(one)), object)


@CELERY.undocumented(
    "Task._dump_pydantic_arguments",
    inside="celery.app.task:Task.apply_async",
    since="5.7",
    tests=["test_template"],
)
@CELERY.undocumented(
    "Task._get_exec_options",
    at="celery.app.task:Task._get_exec_options",
    takes=(),
    tests=["test_template"],
)
@CELERY.undocumented("routes.MapRoute", at="celery.app.routes:MapRoute", tests=["test_template"])
@CELERY.undocumented(
    "routes.Router.lookup_route",
    at="celery.app.routes:Router.lookup_route",
    tests=["test_template"],
)
@CELERY.undocumented(
    "Signal.receivers",
    inside="celery.utils.dispatch.signal:Signal.__init__",
    tests=["test_template"],
)
@CELERY.undocumented(
    "asynchronous.AsyncBackendMixin",
    at="celery.backends.asynchronous:AsyncBackendMixin",
    tests=["test_results"],
)
@CELERY.undocumented(
    "Backend.on_task_call",
    at="celery.backends.base:Backend.on_task_call",
    takes=("producer", "task_id"),
    tests=["test_results", "test_template"],
)
def renders_alike(task: Any, apply_async: Any, backend_class: Any) -> bool:
    """Whether Celery makes the same message of each call of a task but for id, arguments and thread: no receiver, no
    pydantic arguments, no route that looks at arguments, every step of the way is Celery's own, and the result backend
    asks nothing over the network.

    Args:
        apply_async: what the call would be handed on to.
        backend_class: of the app's result backend.
    """
    amqp = task.app.amqp
    return (
        not signals.before_task_publish.receivers
        and not signals.after_task_publish.receivers
        and getattr(task, "_dump_pydantic_arguments", None) is None
        and _are_celerys(
            (app_task, (apply_async, task._get_exec_options, task.shadow_name)),
            (app_base, (own_method(task.app, "send_task"), own_method(task.app, "producer_or_acquire"))),
            (app_amqp, (amqp.create_task_message, amqp.send_task_message)),
            (app_routes, (amqp.router.route, amqp.router.lookup_route)),
        )
        and (issubclass(backend_class, AsyncBackendMixin) or backend_class.on_task_call is Backend.on_task_call)
        and all(type(route) is MapRoute for route in amqp.router.routes)
    )


def own_method(app: Any, name: str) -> Any:
    """A method of an app without what celery_app.py has put in front of it."""
    known = vars(app).get(name)
    known = getattr(known, "covered", known)
    if known is not None:
        return known
    classes = (cls for cls in type(app).__mro__ if not vars(cls).get("writes_rows"))
    return next(vars(cls)[name] for cls in classes if name in vars(cls))


def _are_celerys(*steps: tuple[ModuleType, tuple[Any, ...]]) -> bool:
    """Whether these are the functions of Celery's modules, and not ones put over them: a mixin that adds the tenant to
    the headers, an instrument that adds the trace. A wrapper may copy every name; its globals are its own module's.
    """
    for module, functions in steps:
        own = vars(module)
        for function in functions:
            function = getattr(function, "__func__", function)
            if type(function) is not FunctionType or function.__globals__ is not own:
                return False
    return True


@CELERY.undocumented(
    "saferepr.saferepr",
    at="celery.utils.saferepr:saferepr",
    takes=("o", "maxlen"),
    tests=["test_template"],
)
def shown(value: Any, longest: int, depth: int | None) -> str:
    """A value as Celery shows it in ``argsrepr``.

    Args:
        depth: None where Celery has a fixed one.
    """
    return str(saferepr(value, longest) if depth is None else saferepr(value, longest, maxlevels=depth))


@CELERY.undocumented("time.maybe_iso8601", at="celery.utils.time:maybe_iso8601", takes=("dt",), tests=["test_message"])
@CELERY.undocumented(
    "time.maybe_make_aware",
    at="celery.utils.time:maybe_make_aware",
    takes=("dt", "tz"),
    tests=["test_message"],
)
def read_time(value: Any, app: Any) -> Any:
    """``eta`` or ``expires`` of a call as Celery reads it: a datetime or its ISO text, where naive in UTC."""
    return maybe_make_aware(maybe_iso8601(value), app.timezone)


@CELERY.undocumented("Task._orig_run", inside="celery.app.autoretry:add_autoretry_behaviour", tests=["test_adopt"])
def function_below_autoretry(task: Any) -> Any:
    """A task's function below the wrapper that ``autoretry_for`` puts around it: the source that is to be read."""
    return getattr(task, "_orig_run", task.run)
