"""A call that Celery has rendered once, filled in for the further calls of its kind.

Celery takes some 0.2 ms to render a message in which, from call to call of the same task, only the id, the arguments
and the thread's ``reply_to`` differ; under ASGI, where each request's work may run in a new thread, 0.5 ms. Where
nothing else can differ (:func:`is_safe` says so) a process renders one message, which serves as the template of the
others: 20 µs a call.
Everything else is rendered by Celery each time: calls with options, calls inside a task, callbacks, signals that
somebody listens to, routes that look at arguments, any class that has overridden a step of the way.
tests/enqueue/test_template.py holds the two against each other.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kombu.serialization import dumps
from kombu.utils import json as kombu_json

from reliable_jobs.compat.celery import parts_of_calls, renders_alike, reply_address, shown
from reliable_jobs.compat.celery_backend import wrapped_by
from reliable_jobs.conf import settings
from reliable_jobs.enqueue.render import Capture, check_readable
from reliable_jobs.message.row_to_message import Rendered

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask

_ARGS, _KWARGS = f"args-{uuid.uuid4()}", f"kwargs-{uuid.uuid4()}"
_REPRS = f'"argsrepr": "{_ARGS}", "kwargsrepr": "{_KWARGS}"'
_REPLY_TO = f"reply-to-{uuid.uuid4()}"
#: Shorter strings than saferepr() would cut.
_SHORT = 100
_PLAIN = {str, int, float, bool, type(None), uuid.UUID}
_encode = kombu_json.JSONEncoder().encode
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

    def __init__(self, task: RunnableTask, capture: Capture, sample: uuid.UUID) -> None:
        assert capture.rendered is not None
        self.rendered = capture.rendered
        self.own_root = capture.rendered.root_id == sample
        self.app, self.amqp = task.app, task.app.amqp
        before, _, after = self.rendered.envelope.partition(_REPRS)
        between, replies, end = after.partition(_REPLY_TO)
        self.envelope, self.replies = (before, between, end), bool(replies)
        self.tail = f", {_encode(capture.body[2])}]"
        #: Compared by identity, mostly.
        self.made_from = (os.getpid(), task.ignore_result, *parts_of_calls(task.app))
        self.backend_class = type(wrapped_by(task.app.backend))

    @classmethod
    def make(
        cls, task: RunnableTask, args: Any, kwargs: Any, link: Any = None, link_error: Any = None, **options: Any
    ) -> Template | None:
        """Have Celery render one of the calls, and keep it. None where no other can be made from it.

        Raises:
            TypeError, reliable_jobs.errors.EnqueueError: what is wrong with this call.
        """
        capture, sample = Capture(), uuid.uuid4()
        options.setdefault("reply_to", _REPLY_TO)
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
        return dataclasses.replace(self.rendered, payload=each[0], envelope=each[1], root_id=root)

    def fill_each(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[bytes, str] | None:
        """Payload and envelope of another call, or None as in :meth:`fill`."""
        try:
            payload = f"[{_encode(args)}, {_encode(kwargs) if kwargs else '{}'}{self.tail}".encode()
        except (TypeError, ValueError, RecursionError):
            return None
        if len(payload) > settings.MAX_PAYLOAD_BYTES:
            return None
        if b'"__type__"' in payload:
            check_readable(self.rendered.task, payload)
        before, between, end = self.envelope
        shown = f'"argsrepr": {_encode(self._shown(args, self.amqp.argsrepr_maxsize))}'
        if kwargs:
            shown += f', "kwargsrepr": {_encode(self._shown(kwargs, self.amqp.kwargsrepr_maxsize))}'
        reply_to = reply_address(self.app) if self.replies else ""
        return payload, f"{before}{shown}{between}{reply_to}{end}"

    def _shown(self, values: Any, limit: int) -> str:
        if type(values) in (tuple, list) and len(values) <= 3 and all(map(_is_plain, values)):
            text = repr(values)  # what saferepr() makes of it, in a tenth of the time
            if len(text) <= limit:
                return text
        # Newer than the oldest Celery that we run with, which has a fixed depth.
        depth = getattr(self.amqp.app.conf, "task_repr_maxlevels", None)
        return shown(values, limit, depth)


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


def template_of(task: RunnableTask, apply_async: Any, args: Any, kwargs: Any) -> Template | None:
    """The template for plain calls of a task in this process; None where each has to be rendered by Celery.

    Args:
        apply_async: see :func:`is_safe`.
        args, kwargs: of the call at hand; it is the first one if there is none yet.

    Raises:
        TypeError, reliable_jobs.errors.EnqueueError: as :meth:`Template.make`.
    """
    found = task.template
    if task.app.current_worker_task is not None or not is_safe(task, apply_async, found and found.backend_class):
        return None
    made_from = (os.getpid(), task.ignore_result, *parts_of_calls(task.app))
    if found is not None and found.made_from != made_from:
        found = None
        if not is_safe(task, apply_async):  # with another backend, perhaps
            return None
    if found is None:
        found = task.template = Template.make(task, args, kwargs)
    return found


def is_safe(task: RunnableTask, apply_async: Any, backend_class: Any = None) -> bool:
    """Whether id, arguments and the thread are all that can differ between two calls of the task made now.

    Args:
        apply_async: what the call would be handed on to: Celery's, unless a class or an instrument stands between.
        backend_class: of the app's result backend where it is known. To ask makes one, in each new thread.
    """
    return not task.sensitive and renders_alike(task, apply_async, backend_class or type(wrapped_by(task.app.backend)))
