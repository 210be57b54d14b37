"""Calls of Celery's canvas become rows: what the app's ``send_task`` and ``producer_or_acquire`` do with us in front.

Reliable tasks write their rows themselves (task/call.py); here are the others. In a unit of work each becomes a row
that is an outbox entry only: it ends when the broker has confirmed its message. Outside of one they are Celery's, with
one exception: in a group they are held until it is clear whether one of its tasks is reliable. Then all are rows of one
transaction; if none is, they are published as Celery would have, one after the other.
"""

from __future__ import annotations

import contextlib
import datetime
import uuid
from collections.abc import Iterator
from typing import Any

from django.db import transaction

from reliable_jobs import databases
from reliable_jobs.compat import celery_app
from reliable_jobs.compat.celery import read_time
from reliable_jobs.compat.celery_results import leave_unsubscribed
from reliable_jobs.compat.kombu import NoConnection
from reliable_jobs.enqueue import keys, outbox
from reliable_jobs.enqueue.render import Capture
from reliable_jobs.errors import InvalidOption
from reliable_jobs.message.row_to_message import foreign_id
from reliable_jobs.workflow import unit
from reliable_jobs.workflow.unit import Unit


def send_task(app: Any, below: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    """Celery's ``send_task``, with us in front."""
    producer = options.get("producer")
    if isinstance(producer, Capture):
        return below(name, args, kwargs, **options)  # a row's message is being made
    if isinstance(producer, _Rows):
        del options["producer"]
    here, group = unit.entered(), unit.group_call()
    if here is not None and here.app is app:
        return _as_row(here, below, name, args, kwargs, options)
    if here is None and group is not None and group.app is app:
        return group.hold(below, name, args, kwargs, options)
    return below(name, args, kwargs, **options)


def producer_of_group(app: Any, below: Any) -> contextlib.AbstractContextManager[Any]:
    """A producer for a group's calls."""
    here, group = unit.entered(), unit.group_call()
    if here is not None or group is not None:
        ours = (here or group).app is app
        return contextlib.nullcontext(_Rows()) if ours else below()
    return _GroupCalls(app, below).entered()


class _Rows:
    """Stands for the producer of calls that become rows."""

    serializer = None
    channel = None
    connection = NoConnection()


class _GroupCalls(_Rows):
    """The calls of one group outside a unit of work: all of them or none.

    Args:
        acquire: the app's own ``producer_or_acquire``.
    """

    def __init__(self, app: Any, acquire: Any) -> None:
        self.app, self._acquire = app, acquire
        self._held: list[tuple[Any, str, Any, Any, dict[str, Any]]] = []
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def entered(self) -> Iterator[_GroupCalls]:
        with self._stack, unit.calling_group(self):
            yield self
            if self._held:
                self._publish()

    def hold(self, below: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """Keep a call of a task that is not reliable."""
        options["task_id"] = options.get("task_id") or str(uuid.uuid4())
        self._held.append((below, name, args, kwargs, options))
        return (options.get("result_cls") or self.app.AsyncResult)(options["task_id"])

    def begin(self) -> None:
        """The group has a reliable task: open its transaction."""
        alias = databases.write_alias()
        self._stack.enter_context(transaction.atomic(using=alias))
        here = self._stack.enter_context(unit.unit_of_work(self.app, alias, follows=False))
        held, self._held = self._held, []
        for below, name, args, kwargs, options in held:
            _as_row(here, below, name, args, kwargs, options)

    def _publish(self) -> None:
        with self._acquire() as producer:
            for below, name, args, kwargs, options in self._held:
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
    request = keys.Request(
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
    producer_of_group = staticmethod(producer_of_group)


celery_app.hooks = _Hooks()
