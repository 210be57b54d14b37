"""A call that Celery has rendered once, filled in for the further calls of its kind.

Celery takes some 0.3 ms to render a message in which, from call to call of the same task, only the id and the arguments
differ. Where nothing else can differ (:func:`is_safe` says so) the first message serves as the template of the others.
Everything else is rendered by Celery each time: calls with options, calls inside a task, callbacks, signals that
somebody listens to, routes that look at arguments, any class that has overridden a step of the way.
tests/test_template.py holds the two against each other.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import celery
from celery import signals
from celery.app.routes import MapRoute
from celery.backends.base import Backend
from celery.utils.saferepr import saferepr
from kombu.serialization import dumps
from kombu.utils import json as kombu_json

from reliable_jobs.capture import Capture, check_readable
from reliable_jobs.conf import settings
from reliable_jobs.message import Rendered

if TYPE_CHECKING:
    from reliable_jobs.task import ReliableTask

_ARGS, _KWARGS = f"args-{uuid.uuid4()}", f"kwargs-{uuid.uuid4()}"
_REPRS = f'"argsrepr": "{_ARGS}", "kwargsrepr": "{_KWARGS}"'
#: Shorter strings than saferepr() would cut.
_SHORT = 100
_PLAIN = {str, int, float, bool, type(None), uuid.UUID}
_encode = kombu_json.JSONEncoder().encode
_CELERY = str(Path(celery.__file__).parent)
#: Values for which JSON serialisers differ.
_PROBE = {
    "a": [
        decimal.Decimal("1.50"),
        uuid.UUID(int=1),
        "\u00fc",
        datetime.datetime(2000, 1, 2, 3),
        datetime.date(2000, 1, 2),
    ]
}


class Template:
    """What all calls of a kind have in common, as long as Celery's configuration is what it was."""

    def __init__(self, task: ReliableTask, capture: Capture, sample: uuid.UUID) -> None:
        assert capture.rendered is not None
        self.rendered = capture.rendered
        self.own_root = capture.rendered.root_id == sample
        self.amqp = task.app.amqp
        before, _, after = self.rendered.envelope.partition(_REPRS)
        self.envelope = before, after
        self.tail = f", {_encode(capture.body[2])}]"
        self.made_from = _made_from(task)

    @classmethod
    def make(
        cls, task: ReliableTask, args: Any, kwargs: Any, link: Any = None, link_error: Any = None, **options: Any
    ) -> Template | None:
        """Have Celery render one of the calls, and keep it. None where no other can be made from it.

        Raises:
            TypeError, reliable_jobs.errors.EnqueueError: what is wrong with this call.
        """
        capture, sample = Capture(), uuid.uuid4()
        task.render_into(
            capture, args, kwargs, str(sample), link, link_error, argsrepr=_ARGS, kwargsrepr=_KWARGS, **options
        )
        rendered = capture.rendered
        if rendered is None or rendered.content_type != "application/json" or _REPRS not in rendered.envelope:
            return None
        if '"compression"' in rendered.envelope or str(sample) in rendered.envelope:
            return None
        if dumps(_PROBE, serializer=capture.serialised_by)[2] != _encode(_PROBE):
            return None  # a JSON of the project's own
        return cls(task, capture, sample)

    def fill(self, job_id: uuid.UUID, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Rendered | None:
        """The message of another call; None where Celery should render it, and say what is wrong with it."""
        each = self.fill_each(args, kwargs)
        if each is None:
            return None
        root = job_id if self.own_root else self.rendered.root_id
        return dataclasses.replace(self.rendered, body=each[0], envelope=each[1], root_id=root)

    def fill_each(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[bytes, str] | None:
        """Body and envelope of another call, or None as in :meth:`fill`."""
        try:
            body = f"[{_encode(args)}, {_encode(kwargs) if kwargs else '{}'}{self.tail}".encode()
        except (TypeError, ValueError, RecursionError):
            return None
        if len(body) > settings.MAX_BODY_BYTES:
            return None
        check_readable(self.rendered.task, self.rendered.content_type, body)
        before, after = self.envelope
        shown = f'"argsrepr": {_encode(self._shown(args, self.amqp.argsrepr_maxsize))}'
        if kwargs:
            shown += f', "kwargsrepr": {_encode(self._shown(kwargs, self.amqp.kwargsrepr_maxsize))}'
        return body, f"{before}{shown}{after}"

    def _shown(self, values: Any, limit: int) -> str:
        if type(values) in (tuple, list) and len(values) <= 3 and all(map(_is_plain, values)):
            text = repr(values)  # what saferepr() makes of it, in a tenth of the time
            if len(text) <= limit:
                return text
        # Newer than the oldest Celery that we run with, which has a fixed depth.
        depth = getattr(self.amqp.app.conf, "task_repr_maxlevels", None)
        return str(saferepr(values, limit) if depth is None else saferepr(values, limit, maxlevels=depth))


def plain_copy(args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
    """A copy of a call that its caller can't change any more, and whose encoding runs no code of the values' own; None
    where there may be such code."""
    if type(args) not in (tuple, list) or type(kwargs) is not dict:
        return None
    if not _PLAIN.issuperset(map(type, args)) or not _PLAIN.issuperset(map(type, kwargs.values())):
        return None
    return args if type(args) is tuple else args[:], kwargs.copy()


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        # saferepr() escapes nothing.
        return len(value) <= _SHORT and value.isprintable() and "'" not in value and "\\" not in value
    return kind is int or kind is bool or value is None


class _OfThread(threading.local):
    """Messages carry the thread's ``reply_to``."""

    def __init__(self) -> None:
        self.templates: dict[ReliableTask, Template] = {}


_known = _OfThread()


def template_of(task: ReliableTask, apply_async: Any, args: Any, kwargs: Any) -> Template | None:
    """The template for plain calls of a task from this thread; None where each has to be rendered by Celery.

    Args:
        apply_async: see :func:`is_safe`.
        args, kwargs: of the call at hand; it is the first one if there is none yet.

    Raises:
        TypeError, reliable_jobs.errors.EnqueueError: as :meth:`Template.make`.
    """
    if task.app.current_worker_task is not None or not is_safe(task, apply_async):
        return None
    found = _known.templates.get(task)
    if found is None or found.made_from != _made_from(task):
        found = Template.make(task, args, kwargs)
        if found is not None:
            _known.templates[task] = found
    return found


def _made_from(task: ReliableTask) -> tuple[Any, ...]:
    """What Celery itself has read once from its configuration, and keeps; compared by identity, mostly."""
    amqp = task.app.amqp
    return os.getpid(), amqp, amqp.send_task_message, amqp.router, amqp.default_queue, task.ignore_result


def is_safe(task: ReliableTask, apply_async: Any) -> bool:
    """Whether id and arguments are all that can differ between two calls of the task made now by the same caller.

    Args:
        apply_async: what the call would be handed on to: Celery's, unless a class or an instrument stands between.
    """
    app, amqp = task.app, task.app.amqp
    steps = (
        *(apply_async, task._get_exec_options, task.shadow_name, app.send_task),
        *(amqp.create_task_message, amqp.send_task_message, amqp.router.route),
    )
    return (
        not signals.before_task_publish.receivers
        and not signals.after_task_publish.receivers
        and not task.sensitive
        and getattr(task, "_dump_pydantic_arguments", None) is None
        and all(map(_is_celerys, steps))
        and task.backend.__class__.on_task_call is Backend.on_task_call
        and all(type(route) is MapRoute for route in amqp.router.routes)
    )


def _is_celerys(function: Any) -> bool:
    """Whether this is a function of Celery's own and not one that somebody has put over it (a mixin that adds the
    tenant to the headers, an instrument that adds the trace). Where it was written tells: wrappers keep the name."""
    function = getattr(function, "__func__", function)
    return type(function) is FunctionType and function.__code__.co_filename.startswith(_CELERY)
