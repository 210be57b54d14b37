"""A job's result as text for its row, and back.

JSON as it is. What the project's ``result_serializer`` makes of it otherwise (YAML, pickle, a serializer of its own)
stands in a JSON object with one key, with its content type. It is decoded only if Celery's ``result_accept_content``
(or ``accept_content``, if that is not set) has that type.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from celery import current_app
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import ResultBase
from kombu.exceptions import EncodeError
from kombu.serialization import dumps, loads

from reliable_jobs.compat.celery_backend import is_disabled
from reliable_jobs.compat.kombu import content_types
from reliable_jobs.conf import settings
from reliable_jobs.errors import ResultTooLarge

if TYPE_CHECKING:
    from reliable_jobs.task_types import RunnableTask

_KEY = "reliable_jobs.result"
_START = f'{{"{_KEY}": '
_JSON = "application/json"


def as_celery_stores(value: Any) -> Any:
    """``return other.delay()``: Celery stores the id and those of the parents."""
    return value.as_tuple() if isinstance(value, ResultBase) else value


def returned(task: RunnableTask, value: Any, *, needed: bool = False) -> str | None:
    """What a task function has returned, as text for the row; None when there is nothing to store.

    Args:
        needed: for the body of a chord, though the task's results be ignored.

    Raises:
        TypeError, ResultTooLarge: it can't be stored, and somebody wants it: a result backend, or what follows the job.
            Raised inside the savepoint, so the task function's effects are undone with it.
    """
    request = task.request
    ignored = request.ignore_result or (task.ignore_result and "ignore_result" not in vars(request))
    if value is None or (ignored and not needed):
        return None
    try:
        text = encode(as_celery_stores(value), task.app.conf.result_serializer)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if not (needed or _is_wanted(task)):
            return None
        raise TypeError(
            f"{task.name} returned a {type(value).__name__} that can't be stored as "
            f"{task.app.conf.result_serializer.upper()} ({error}). Return plain data or an id, or set ignore_result = "
            "True. Its database effects were rolled back."
        ) from error
    if (size := len(text.encode())) <= settings.MAX_RESULT_BYTES:
        return text
    if not (needed or _is_wanted(task)):
        return None
    raise ResultTooLarge(
        f"{task.name} returned a {type(value).__name__} of {size} bytes, serialised; the limit is "
        f"{settings.MAX_RESULT_BYTES} (RELIABLE_JOBS['MAX_RESULT_BYTES']). Store it, and return its key. Its database "
        "effects were rolled back."
    )


def started_by(request: Any) -> str | None:
    """What a run has started so far, as text for its row: Celery's ``children`` of its result. None for nothing."""
    children = request.children
    return encode([child.as_tuple() for child in children], "json") if children else None


def _is_wanted(task: RunnableTask) -> bool:
    """Whether somebody asks for the result."""
    request = task.request
    return bool(request.callbacks or request.chain or request.chord) or not is_disabled(task.backend)


def encode(value: Any, serializer: str) -> str:
    """
    Args:
        serializer: a name that kombu knows.

    Raises:
        celery.exceptions.SoftTimeLimitExceeded: it came meanwhile.
        Exception: of any kind, the value can't be serialised.
    """
    try:
        content_type, encoding, data = dumps(value, serializer)
    except EncodeError as error:
        if isinstance(error.__context__, SoftTimeLimitExceeded):  # kombu makes an EncodeError of any exception
            raise error.__context__ from None
        raise
    if content_type == _JSON:
        data = data if isinstance(data, str) else data.decode()
        if not data.startswith(_START):  # else it must not be taken for one of ours
            return data
    is_binary = isinstance(data, bytes)
    kept = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return _START + json.dumps([content_type, encoding, is_binary, kept]) + "}"


def decode(text: str) -> Any:
    """
    Raises:
        kombu.exceptions.ContentDisallowed: Celery's settings do not accept this content type.
        Exception: of any kind, it can't be read.
    """
    if not is_wrapped(text):
        return loads(text, _JSON, "utf-8", accept=[_JSON])
    content_type, encoding, is_binary, kept = json.loads(text)[_KEY]
    conf = current_app.conf
    accept = content_types([*(conf.result_accept_content or conf.accept_content), "json"])
    return loads(base64.b64decode(kept) if is_binary else kept, content_type, encoding, accept=accept)


def is_wrapped(text: str) -> bool:
    """Whether the text is not the JSON of the result itself."""
    return text.startswith(_START)
