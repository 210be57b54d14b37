"""Saying what is wrong with a call that can't be written: which argument it is, and what to pass instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from django.db.models import Model, QuerySet
from kombu.serialization import dumps

from reliable_jobs.conf import settings
from reliable_jobs.errors import JobTooLarge, UnserialisableArguments


def unserialisable(task: Any, body: Any, serializer: str | None, error: Exception) -> UnserialisableArguments:
    args, kwargs = (body[0], body[1]) if isinstance(body, tuple) else ((), {})
    for name, value in _named(args, kwargs):
        found = _model_inside(value)
        if found is not None:
            kind = type(found).__name__
            what = (
                "list(queryset.values_list('pk', flat=True))"
                if isinstance(found, QuerySet)
                else f"its primary key (.pk) and load the {kind} in the task"
            )
            return UnserialisableArguments(
                f"{task}: {name} holds a {kind}; a job carries references, not values. Pass {what}."
            )
    for name, value in _named(args, kwargs):
        try:
            dumps(value, serializer=serializer)
        except SoftTimeLimitExceeded:
            raise
        except Exception as reason:  # a serialiser raises what it likes
            return UnserialisableArguments(
                f"{task}: {name} ({type(value).__name__}) can't be serialised as {serializer or 'json'}: {reason}. "
                "Pass a primary key, a URL or plain data."
            )
    return UnserialisableArguments(f"{task}: the call can't be serialised as {serializer or 'json'}: {error}")


def too_large(task: Any, body: Any, serializer: str | None, size: int, follows: bool) -> JobTooLarge:
    if follows:
        return JobTooLarge(
            f"{task}: the results that it is called with make a message of {size} bytes, which is more than a broker "
            "takes (16 MiB). Let each job store its data and return its primary key or URL."
        )
    args, kwargs = (body[0], body[1]) if isinstance(body, tuple) else ((), {})
    sizes = {name: len(dumps(value, serializer=serializer)[2]) for name, value in _named(args, kwargs)}
    largest = max(sizes, key=lambda name: sizes[name], default="the payload")
    return JobTooLarge(
        f"{task}: the serialised call has {size} bytes, the limit is {settings.MAX_PAYLOAD_BYTES} "
        f"(RELIABLE_JOBS['MAX_PAYLOAD_BYTES']); the largest part is {largest}. "
        "Store the data and pass its primary key or URL."
    )


def _named(args: Any, kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for position, value in enumerate(args):
        yield f"argument {position + 1}", value
    yield from kwargs.items()


def _model_inside(value: Any, depth: int = 4) -> Model | QuerySet[Any] | None:
    if isinstance(value, (Model, QuerySet)):
        return value
    if depth and isinstance(value, (list, tuple, set, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            found = _model_inside(item, depth - 1)
            if found is not None:
                return found
    return None
