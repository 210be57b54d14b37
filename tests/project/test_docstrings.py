"""Docstrings of what users call: each argument, what is returned and raised, units, and an example that runs."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from celery import Celery, _state, shared_task
from celery.exceptions import Ignore, TaskRevokedError
from django.contrib.auth.models import User
from django.core.management import get_commands, load_command_class

import reliable_jobs
from reliable_jobs import conf, errors, idempotency, jobs, testing
from reliable_jobs.models import Job
from reliable_jobs.results import JobResult
from reliable_jobs.sweep import ensure_jobs
from reliable_jobs.testing import override_dispatch, run_jobs
from tests.celery_app import app
from tests.testapp.models import Effect

CLASSES = [
    *(getattr(reliable_jobs, name) for name in reliable_jobs.__all__ if name != "reliable_task"),
    *(getattr(idempotency, name) for name in idempotency.__all__ if name != "once"),
]
#: Of these a subclass defines its own, as the example of their class shows.
HOOKS = [
    idempotency.IdempotentTask.natural_key,
    idempotency.GetOrCreateTask.lookup,
    idempotency.GetOrCreateTask.defaults,
]
FUNCTIONS = [
    reliable_jobs.reliable_task,
    idempotency.once,
    *(getattr(jobs, name) for name in jobs.__all__ if name != "Report"),
    *(one for one in map(testing.__dict__.get, testing.__all__) if isinstance(one, types.FunctionType)),
    *(
        inspect.getattr_static(reliable_jobs.ReliableTask, name)
        for name in (
            *("apply_async", "bulk_delay", "delay_on_commit", "apply_async_on_commit", "adelay", "aapply_async"),
            *("AsyncResult", "fenced", "on_rollback", "idempotency_key", "retry", "snooze"),
        )
    ),
    JobResult.get,
    JobResult.revoke,
]


def plain(one: Any) -> Callable[..., Any]:
    return inspect.unwrap(one.fget if isinstance(one, property) else one)


def name(one: Any) -> str:
    return str(plain(one).__qualname__)


def doc(one: Any) -> str:
    return inspect.cleandoc(one.__doc__ or "")


def section(text: str, title: str) -> str:
    found = re.search(rf"^{title}:+\n+((?:    .*\n|\n)+)", f"{text}\n", re.M)
    return textwrap.dedent(found[1]) if found else ""


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    given = inspect.signature(plain(function)).parameters
    return {name: one for name, one in given.items() if name not in ("self", "positional")}


@pytest.mark.parametrize("function", [*FUNCTIONS, *HOOKS], ids=name)
def test_each_argument_is_typed_and_explained(function: Any) -> None:
    text = doc(function)
    said = section(text, "Args")
    explained = {name for names in re.findall(r"^(\w+(?:, \w+)*):", said, re.M) for name in names.split(", ")}
    typed = parameters(function)
    assert all(one.annotation is not one.empty for one in typed.values())
    assert inspect.signature(plain(function)).return_annotation is not inspect.Signature.empty
    if "Args, returns and raises: as ``" not in text:
        assert set(typed) == explained


@pytest.mark.parametrize("function", [*FUNCTIONS, *HOOKS], ids=name)
def test_times_have_their_unit(function: Any) -> None:
    said = section(doc(function), "Args")
    for argument, one in parameters(function).items():
        if said and "float" in str(one.annotation):
            (line,) = re.findall(rf"^(?:\w+, )*{argument}(?:, \w+)*: (.*(?:\n .*)*)", said, re.M)
            assert re.search(r"\b(seconds|timedelta)\b", line), f"{argument}: {line}"


@pytest.mark.parametrize("function", [*FUNCTIONS, *HOOKS], ids=name)
def test_each_error_that_is_raised_is_named(function: Any) -> None:
    source = ast.parse(textwrap.dedent(inspect.getsource(plain(function))))
    raised = {
        node.exc.func.id
        for node in ast.walk(source)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }
    text = doc(function)
    said = section(text, "Raises")
    for error in raised:
        known = getattr(errors, error, None)
        assert error in said or (known and issubclass(known, errors.EnqueueError) and "EnqueueError" in said), error


ERRORS = [one for one in vars(errors).values() if isinstance(one, type)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda one: one.__name__)
def test_each_error_says_what_it_means(error: type) -> None:
    if error not in (Ignore, TaskRevokedError):  # Celery's
        assert issubclass(error, errors.ReliableJobsError)
        assert re.match(r"[A-Z`].*\.", " ".join(doc(error).split())), doc(error)


def test_each_setting_is_explained() -> None:
    source = inspect.getsource(conf.Settings)
    for field in dataclasses.fields(conf.Settings):
        assert re.search(rf"    #: .*\n(    #: .*\n)*    {field.name}: ", source), field.name


def test_each_command_and_each_of_its_options_is_explained() -> None:
    ours = [name for name, package in get_commands().items() if package == "reliable_jobs"]
    assert len(ours) == 10
    for command in ours:
        loaded = load_command_class("reliable_jobs", command)
        assert loaded.help.endswith("."), command
        for action in loaded.create_parser("manage.py", command)._actions:
            assert action.help, f"{command} {action.dest}"


# --- examples ---------------------------------------------------------------------------------------------------------


class Provider:
    """Someone outside."""

    def charge(self, order_id: int, *, idempotency_key: str) -> str:
        return f"{order_id} {idempotency_key}"

    refund = charge

    def get(self, url: str) -> None:
        raise ConnectionError(url)


@pytest.fixture
def no_task_stays() -> Iterator[None]:
    """The tasks of the examples leave with the test, each other living app too, where a shared one is registered."""
    tasks, hooks, declared = set(app.tasks), set(_state._on_app_finalizers), list(ensure_jobs._declared)
    yield
    for one in set(app.tasks) - tasks:
        app.tasks.pop(one)
    for other in [other for other in _state._get_active_apps() if other.finalized]:
        for one in [one for one in other.tasks if one.startswith("examples.")]:
            other.tasks.pop(one)
    _state._on_app_finalizers.intersection_update(hooks)
    ensure_jobs._declared[:] = declared


@pytest.fixture
def names(db: None, no_task_stays: None) -> Iterator[dict[str, Any]]:
    """The names that the examples use. Their app is the current one, which may be the demo's, if that came later."""
    current = _state.get_current_app()
    app.set_current()
    with override_dispatch():

        @reliable_jobs.reliable_task(name="examples.fixture")
        def send_receipt(order_id: int) -> str:
            return f"receipt {order_id}"

        finished = send_receipt.delay(1)
        run_jobs()
        modules = (reliable_jobs, idempotency, testing)
        yield {
            "__name__": "examples",
            **{name: getattr(module, name) for module in modules for name in module.__all__},
            "jobs": jobs,
            "Job": Job,
            "ensure_jobs": jobs.ensure_jobs,
            "JobResult": JobResult,
            "app": app,
            "Celery": Celery,
            "shared_task": shared_task,
            "User": User,
            "Account": User,
            "order": types.SimpleNamespace(pk=7),
            "provider": Provider(),
            "book": len,
            **dict.fromkeys(("Order", "Parcel", "Payment", "Upload", "Video"), Effect),
            "send_receipt": send_receipt,
            "send_verification": send_receipt,
            "prepare": send_receipt,
            "ship": send_receipt,
            "datetime": datetime,
            "job": Job.objects.get(pk=send_receipt.delay(2).id),
            "done": Job.objects.get(pk=finished.id),
        }
    current.set_current()


def example(one: Any) -> str:
    return section(doc(one), "Example")


@pytest.mark.parametrize("one", [*CLASSES, *FUNCTIONS], ids=name)
def test_each_example_runs(one: Any, names: dict[str, Any]) -> None:
    code = compile(example(one), name(one), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert code.co_names, "an example is missing"
    if one is testing.crash_at_every_statement:
        return  # it needs PostgreSQL, and has tests of its own
    done = eval(code, names)
    if inspect.isawaitable(done):
        async_to_sync(_awaited)(done)
    run_jobs(raise_errors=True)


async def _awaited(one: Any) -> None:
    await one
