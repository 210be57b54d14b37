"""The reliable tasks themselves: what their classes say."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

from celery import Celery
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured

from reliable_jobs.checks.adoption import check_adoption, foreign_requests
from reliable_jobs.checks.celery_settings import TAG
from reliable_jobs.checks.loading import load_tasks, reliable_tasks
from reliable_jobs.compat.celery import configured_app
from reliable_jobs.conf import settings
from reliable_jobs.dispatch import bundles
from reliable_jobs.task.guards import GUARD
from reliable_jobs.task.reliable_task import ReliableTask

#: What a task class may set, where a slip of the pen changes what happens to a job and nothing says so. Names that are
#: ordinary words (queue, name …) are left out: "queues" is somebody's own attribute.
ATTRIBUTES = (
    *("acks_late", "acks_on_failure", "acks_on_failure_or_timeout", "acks_on_timeout", "atomic", "autoretry_for"),
    *("bundle", "compression"),
    *("default_retry_delay",),
    *("dont_autoretry_for", "expires", "ignore_result", "max_retries", "priority", "rate_limit"),
    *(
        "reject_on_worker_lost",
        "retry_on_worker_lost",
        "retry_backoff",
        "retry_backoff_max",
        "retry_jitter",
        "retry_kwargs",
        "retry_window",
    ),
    *("routing_key", "sensitive", "serializer", "soft_time_limit", "store_eager_result"),
    *("store_errors_even_if_ignored", "time_limit", "track_started"),
)
_NEAR = 0.8
#: Names shown in one message; a base class with a slip of the pen may have hundreds of tasks.
_SHOWN = 5


@register(TAG)
def check_tasks(**kwargs: Any) -> list[CheckMessage]:
    app = configured_app()
    if app is None:
        return []
    try:
        load_tasks(app)
    except Exception as error:  # a project's module may raise anything
        return [
            Error(
                f"The task modules can't be imported: {type(error).__name__}: {error}. No worker would start.",
                hint="Import them in manage.py shell to see the traceback.",
                id="reliable_jobs.E003",
            )
        ]
    tasks = reliable_tasks(app)
    return [
        *_pickled(tasks),
        *_delivery(tasks),
        *_lost(tasks),
        *_unlimited(app, tasks),
        *_generators(tasks),
        *_classes(tasks),
        *_windows(tasks),
        *_bundles(tasks),
        *check_adoption(app),
        *foreign_requests(tasks),
    ]


def _pickled(tasks: list[Any]) -> Iterator[CheckMessage]:
    names = [task.name for task in tasks if task.serializer in ("pickle", "application/x-python-serialize")]
    conf_says_it = bool(tasks) and tasks[0].app.conf.task_serializer == "pickle"
    if names and not conf_says_it:
        yield Error(
            f"serializer is pickle, which reliable tasks refuse, so every enqueue would fail: {_list(names)}.",
            hint="Remove the attribute; JSON is the default.",
            id="reliable_jobs.E002",
        )


def _delivery(tasks: list[Any]) -> Iterator[CheckMessage]:
    early = [task.name for task in tasks if not task.acks_late]
    if early:
        yield Warning(
            f"acks_late is off, so a job whose worker dies runs again only when the sweeper misses it, after "
            f"RELIABLE_JOBS['GRACE'] or later: {_list(early)}.",
            hint="Leave acks_late as ReliableTask sets it.",
            id="reliable_jobs.W031",
        )
    rejected = [task.name for task in tasks if task.acks_late and not _acks_failures(task)]
    if rejected:
        yield Warning(
            "acks_on_failure_or_timeout (acks_on_failure) is off, so messages of failed jobs go to the queue's "
            f"dead-letter exchange, though their rows are settled; run from there they do nothing: {_list(rejected)}.",
            hint="Remove task_acks_on_failure_or_timeout = False (task_acks_on_failure = False); failed jobs are kept, "
            "and requeued, as rows.",
            id="reliable_jobs.W033",
        )


def _lost(tasks: list[Any]) -> Iterator[CheckMessage]:
    app = tasks[0].app if tasks else None
    if app is not None and app.conf.get("task_retry_on_worker_lost"):
        yield Warning(
            "task_retry_on_worker_lost does not reach reliable tasks: the message of a killed worker's job goes back "
            "to the broker, and starts that never report are bounded by RELIABLE_JOBS['MAX_CRASHES'].",
            hint="Nothing needs to be done for reliable tasks. Silence this check if the setting is meant for others.",
            id="reliable_jobs.W039",
        )


def _acks_failures(task: Any) -> bool:
    """Celery 5.7 splits the setting in two. A hard time limit is none of its business: its message goes back."""
    own = getattr(task, "acks_on_failure", None)
    return bool(task.acks_on_failure_or_timeout if own is None else own)


def _unlimited(app: Celery, tasks: list[Any]) -> Iterator[CheckMessage]:
    # Ours calls what the project's errbacks are; a limit is theirs to set.
    unlimited = [task for task in tasks if not task.atomic and not task.time_limit and not app.conf.task_time_limit]
    names = [task.name for task in unlimited if not task.name.startswith("reliable_jobs.")]
    if names:
        yield Warning(
            "Non-atomic tasks without a time limit: a call across the network that never answers holds a worker's slot "
            f"for ever, and its job for RELIABLE_JOBS['RUN_DEADLINE']: {_list(names)}.",
            hint="Set time_limit (and a lower soft_time_limit) on the task, or task_time_limit for all, and give the "
            "network call a timeout.",
            id="reliable_jobs.W034",
        )


def _generators(tasks: list[Any]) -> Iterator[CheckMessage]:
    names = [task.name for task in tasks if task.is_generator]
    if names:
        yield Error(
            f"The task function is a generator (it has a yield), so calls are refused: {_list(names)}.",
            hint="Use a loop in the function, or return a list. An async def is fine.",
            id="reliable_jobs.E060",
        )


def _classes(tasks: list[Any]) -> Iterator[CheckMessage]:
    """Each class once, however many tasks inherit from it."""
    users: dict[type, list[str]] = {}
    for task in tasks:
        for cls in _own_classes(task):
            users.setdefault(cls, []).append(task.name)
    for cls, names in users.items():
        if _call_stops_at(cls):
            yield Warning(
                f"{cls.__module__}.{cls.__qualname__} overrides __call__ without calling super().__call__(): its jobs "
                f"are not claimed, and fail: {_list(names)}.",
                hint="Call super().__call__(*args, **kwargs), or move the code to before_start() or run().",
                id="reliable_jobs.W030",
            )
        for wrong, right in _misspelt(cls):
            yield Warning(
                f"{wrong} is no attribute that a task knows; {right} is: {_list(names)}.",
                hint=f"Write {right}; or, if it is an attribute of your own, give it a less similar name.",
                id="reliable_jobs.W035",
            )


def _windows(tasks: list[Any]) -> Iterator[CheckMessage]:
    names = [
        task.name
        for task in tasks
        if task.retry_window is not None
        and not getattr(task, "autoretry_for", None)
        and not any("retry" in _names(function) for cls in _own_classes(task) for function in _functions(cls))
    ]
    if names:
        yield Warning(
            f"retry_window is set, but nothing retries: neither autoretry_for nor a call of retry(): {_list(names)}.",
            hint="Name the errors in autoretry_for, or use the base class RetriedTask.",
            id="reliable_jobs.W036",
        )


def _bundles(tasks: list[Any]) -> Iterator[CheckMessage]:
    odd = [task.name for task in tasks if not isinstance(task.bundle, int) or not 1 <= task.bundle <= bundles.LIMIT]
    if odd:
        yield Error(
            f"bundle is not a number from 1 to {bundles.LIMIT}: {_list(odd)}.",
            hint="It says how many jobs of the task may share one message and one transaction.",
            id="reliable_jobs.E004",
        )
    with contextlib.suppress(ImproperlyConfigured):  # a check of its own says so
        yield from _bundles_as_configured([task for task in tasks if task.name not in odd and task.bundle > 1])


def _bundles_as_configured(tasks: list[Any]) -> Iterator[CheckMessage]:
    unfit = [task.name for task in tasks if bundles.size(task) == 1]
    if unfit:
        yield Warning(
            "bundle is set, but the jobs travel alone: non-atomic functions have no transaction to share, nor those of "
            f"workers that keep no connections, and a rate limit counts messages: {_list(unfit)}.",
            hint="Remove bundle; or atomic = False, rate_limit, WORKER_CONN_MAX_AGE = 0.",
            id="reliable_jobs.W037",
        )
    bundled = [task.name for task in tasks if bundles.size(task) > 1]
    if bundled and not settings.WORKER_SWEEP_INTERVAL:
        yield Warning(
            "revoke() and Flower's revoke do not reach jobs that travel in bundles: the sweeper beside each worker, "
            f"which would cancel them, is off: {_list(bundled)}.",
            hint="Set WORKER_SWEEP_INTERVAL above 0; or cancel such jobs on the admin page only.",
            id="reliable_jobs.W038",
        )


def _own_classes(task: Any) -> list[type]:
    """The project's classes of a task: those before ReliableTask, without the ready-made bases of this package."""
    mro = type(task).__mro__
    return [cls for cls in mro[: mro.index(ReliableTask)] if not cls.__module__.startswith("reliable_jobs.")]


def _call_stops_at(cls: type) -> bool:
    call = vars(cls).get("__call__")
    if getattr(call, GUARD, "own") != "own":
        return False  # it stands in another class
    names = _names(call)
    return call is not None and bool(names) and not {"super", "__call__"} & names


def _misspelt(cls: type) -> Iterator[tuple[str, str]]:
    # Not hasattr: reading ``app`` binds ReliableTask itself to the current app, and every class made later inherits
    # that app's settings.
    known = {*dir(ReliableTask), *ATTRIBUTES}
    for name, value in vars(cls).items():
        if name.startswith("_") or name in known:
            continue
        if callable(value) or isinstance(value, (property, classmethod, staticmethod)):
            continue
        near = difflib.get_close_matches(name, ATTRIBUTES, n=1, cutoff=_NEAR)
        if near:
            yield name, near[0]


def _functions(cls: type) -> Iterator[Any]:
    for value in vars(cls).values():
        value = getattr(value, "__func__", value)
        if inspect.isfunction(value):
            yield value


def _names(function: Any) -> set[str]:
    """Every global and attribute that a Python function mentions, inner functions included; empty for others."""
    try:
        code = inspect.unwrap(function).__code__
    except (AttributeError, ValueError):
        return set()
    return {"", *_names_in(code)}


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _list(names: Iterable[str]) -> str:
    names = sorted(set(names))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
