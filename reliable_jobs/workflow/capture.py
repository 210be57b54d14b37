"""Task messages that Celery makes become rows: what the app's ``send_task``, and the calls of a group, do with us in
front.

Reliable tasks write their rows themselves (task/call.py); here are the others. In a unit of work each becomes a row
that is an outbox entry only: it ends when the broker has confirmed its message. Outside of one they are Celery's, with
two exceptions. Calls of what ``RELIABLE_JOBS["OUTBOX_TASKS"]`` names become rows. And the calls of a group are held
until it is clear whether one of them is a row: then all are, in one transaction; if none is, they are published as
Celery would have, one after the other.
"""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from django.db import transaction

from reliable_jobs import databases
from reliable_jobs.compat import celery_app
from reliable_jobs.compat.celery import read_time
from reliable_jobs.compat.celery_results import leave_unsubscribed
from reliable_jobs.compat.kombu import NoConnection
from reliable_jobs.conf import settings
from reliable_jobs.enqueue import insert, outbox
from reliable_jobs.enqueue.render import Capture
from reliable_jobs.errors import InvalidOption
from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.workflow import unit
from reliable_jobs.workflow.unit import Unit

#: Tasks of Celery's (chord_unlock …) and of ours (the sweeper's tick …). OUTBOX_TASKS never means them.
INTERNAL = ("celery.*", "reliable_jobs.*")
#: Options with which a caller says through which connection a message goes.
_OWN_WAY = ("producer", "connection", "publisher")
#: Options of the messages with which a task that is not reliable goes on: its ``retry()`` and ``replace()``. It raises
#: next, and the row would be rolled back with its transaction.
_GOES_ON = ("retries", "replaced_task_nesting")


def send_task(app: Any, below: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    """Celery's ``send_task``, with us in front."""
    if isinstance(options.get("producer"), Capture):
        return below(name, args, kwargs, **options)  # a row's message is being made
    if isinstance(options.get("producer"), _Rows):
        del options["producer"]
    here, group = unit.current(), unit.group_call()
    in_group = group is not None and group.app is app
    if here is None and is_captured(name, options):
        here = unit.begun() if in_group else Unit(app, databases.write_alias(), follows=False)
    if here is not None and here.app is app:
        return _as_row(here, below, name, args, kwargs, options)
    if here is None and in_group:
        return group.collect(below, name, args, kwargs, options)
    return below(name, args, kwargs, **options)


def is_captured(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a call outside a unit of work becomes a row: OUTBOX_TASKS names its task, the caller leaves the way of
    the message to us, and no plain task goes on by it.

    Args:
        name: of the task.
        options: of the call.
    """
    patterns = settings.OUTBOX_TASKS
    if not patterns or any(options.get(one) is not None for one in _OWN_WAY) or any(map(options.get, _GOES_ON)):
        return False
    return _matches(name, patterns) and not _matches(name, INTERNAL)


def _matches(name: str, patterns: Any) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def calls_of_group(app: Any, group_id: str | None) -> contextlib.AbstractContextManager[Any]:
    """Entered around the calls of a group; gives the producer for them."""
    here, group = unit.current(), unit.group_call()
    if here is not None or group is not None:
        ours = (here or group).app is app
        return contextlib.nullcontext(_Rows() if ours else None)
    return _GroupCalls(app, group_id).entered()


class _Rows:
    """Stands for the producer of calls that become rows."""

    are_rows = True
    serializer = None
    channel = None
    connection = NoConnection()


class _GroupCalls(_Rows):
    """The calls of one group outside a unit of work: all of them or none."""

    are_rows = False

    def __init__(self, app: Any, group_id: str | None) -> None:
        self.app, self._group_id = app, group_id
        self._collected: list[tuple[Any, str, Any, Any, dict[str, Any]]] = []
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def entered(self) -> Iterator[_GroupCalls]:
        with self._stack, unit.calling_group(self):
            yield self
            if self._collected:
                self._publish()

    def collect(self, below: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """A call of a task that is not reliable: it goes out when all of the group's calls are known."""
        options["task_id"] = options.get("task_id") or str(uuid.uuid4())
        self._collected.append((below, name, args, kwargs, options))
        return (options.get("result_cls") or self.app.AsyncResult)(options["task_id"])

    def begin(self) -> None:
        """One of the group's calls is a row: open their transaction."""
        self.are_rows = True
        alias = databases.write_alias()
        self._stack.enter_context(transaction.atomic(using=alias))
        # Celery makes each task of a group that no task calls a root of its own. They belong together: cancelling.py.
        root_id = self._group_id if self.app.current_worker_task is None else None
        here = self._stack.enter_context(unit.unit_of_work(self.app, alias, root_id=root_id, follows=False))
        collected, self._collected = self._collected, []
        for below, name, args, kwargs, options in collected:
            _as_row(here, below, name, args, kwargs, options)

    def _publish(self) -> None:
        with self.app.producer_or_acquire() as producer:
            for below, name, args, kwargs, options in self._collected:
                below(name, args, kwargs, **{**options, "producer": producer})


def _as_row(here: Unit, below: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    options = here.with_lineage(options)
    task = here.app.tasks.get(name)
    if getattr(task, "writes_outbox", False):
        # By its name, which Celery does not look up. (Its own call makes its message with a Capture.)
        left_out = ("task_type", "result_cls", "router", "route_name", "connection", "publisher")
        return task.apply_async(args, kwargs, **{key: options[key] for key in options if key not in left_out})
    return _relayed(here, below, name, args, kwargs, options)


def _relayed(here: Unit, below: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    """Write a row that is an outbox entry only. Its delay is spent in the row; ``expires`` travels in the message."""
    task_id = options["task_id"] = options.get("task_id") or str(uuid.uuid4())
    countdown, eta = options.pop("countdown", None), options.pop("eta", None)
    capture = Capture(relay_only=True)
    capture.follows = here.follows
    leave_unsubscribed(here.app.backend, Capture)
    for ours in ("connection", "publisher", "retry", "retry_policy"):
        options.pop(ours, None)
    result = below(name, args, kwargs, **{**options, "producer": capture})
    if capture.rendered is None:
        raise InvalidOption(f"{name}: Celery did not render a message; is send_task overridden?")
    request = insert.Request(
        foreign_id(task_id),
        capture.rendered,
        countdown=None if countdown is None else float(countdown),
        eta=None if countdown or eta is None else _time(here.app, name, eta),
        id_given=True,
        follows=here.follows,
        relay_only=True,
    )
    outbox.enqueue(here.app, request, using=here.using)
    return result


def _time(app: Any, name: str, value: Any) -> datetime.datetime:
    try:
        moment: datetime.datetime = read_time(value, app)
        moment.astimezone(datetime.timezone.utc)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InvalidOption(f"{name}: eta={value!r} is not a datetime between the years 1 and 9999.") from error
    return moment


class _Hooks:
    send_task = staticmethod(send_task)
    calls_of_group = staticmethod(calls_of_group)


celery_app.hooks = _Hooks()
