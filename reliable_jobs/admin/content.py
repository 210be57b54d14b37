"""What a job carries, as far as a page may show it: arguments and result."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pprint
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from celery import current_app
from kombu.serialization import loads

from reliable_jobs.compat.django_admin import import_from_apps
from reliable_jobs.message import result_text
from reliable_jobs.message.decode import NotDecoded, TooLarge, arguments, headers_of
from reliable_jobs.models import Job
from reliable_jobs.task.reliable_task import ReliableTask
from reliable_jobs.task.sensitive import HIDDEN

if TYPE_CHECKING:
    from celery import Task

logger = logging.getLogger(__name__)

#: Characters shown of arguments and result.
SHOWN = 20_000


@dataclasses.dataclass(frozen=True)
class Shown:
    text: str
    note: str = ""


def shown_arguments(job: Job) -> Shown:
    """The decoded arguments; the message's own masked texts where the task is sensitive; what can be said of a payload
    that can't be decoded. Never raises for a payload, however odd."""
    task = _task(job)
    if _flagged(job):
        headers = headers_of(job)
        text = f"{headers.get('argsrepr', HIDDEN)}\n{headers.get('kwargsrepr', HIDDEN)}"
        return Shown(_cut(text), "Sensitive arguments are hidden.")
    payload = bytes(job.payload)
    about = f"{len(payload)} bytes of {job.content_type or 'unknown type'}"
    masked = isinstance(task, ReliableTask) and bool(task.sensitive)
    try:
        args, kwargs = arguments(job)
        if masked and task is not None:
            # A message from elsewhere: its sender knew nothing of ``sensitive``, the code at hand does.
            return Shown(_cut("\n".join(task._shown(args, kwargs))), "Sensitive arguments are hidden.")
        return Shown(_cut(_lines(task, args, kwargs)), "" if args or kwargs else "No arguments.")
    except TooLarge as error:
        return Shown(HIDDEN if masked else repr(payload[:500]), f"Too large to show ({error}): {about}.")
    except NotDecoded as error:
        return Shown(HIDDEN if masked else repr(payload[:500]), f"Not shown ({error}): {about}.")
    except (ValueError, RecursionError) as error:
        return Shown(HIDDEN if masked else repr(payload[:500]), f"Can't be decoded ({error}): {about}.")


def shown_result(job: Job) -> Shown:
    """The result as it was stored, unless it holds the value of a sensitive argument."""
    if job.result is None:
        return Shown("", "No result is stored.")
    if result_text.is_wrapped(job.result):
        return Shown("", "The result is stored by the project's result_serializer, and is not decoded here.")
    task = _task(job)
    if _flagged(job) or (isinstance(task, ReliableTask) and task.sensitive):
        try:
            leaks = not isinstance(task, ReliableTask) or _holds(
                loads(job.result, "application/json", "utf-8"), task.secrets(*arguments(job))
            )
        except Exception:  # what can't be compared is not shown
            leaks = True
        if leaks:
            return Shown(HIDDEN, "The result may hold a sensitive argument.")
    return Shown(_cut(job.result))


@functools.cache
def _import_tasks() -> None:
    """A web process imports a task when it first calls it; what is sensitive must be known before that."""
    try:
        import_from_apps("tasks")
    except Exception:  # a page must come, whatever an application's module does when it is imported
        logger.exception("Not every tasks module could be imported; arguments may be shown without their names.")


def _task(job: Job) -> Task | None:
    """The code, where this process has it."""
    _import_tasks()
    return current_app.tasks.get(job.task)


def _flagged(job: Job) -> bool:
    try:
        return bool(json.loads(job.envelope).get("sensitive"))
    except (ValueError, AttributeError):
        return False


def _lines(task: Task | None, args: list[Any], kwargs: dict[str, Any]) -> str:
    names = task._positional_names() if isinstance(task, ReliableTask) else []
    labelled = [(names[i] if i < len(names) else f"argument {i + 1}", value) for i, value in enumerate(args)]
    return "\n".join(
        f"{name} = {pprint.pformat(value, width=100, compact=True, sort_dicts=False)}"
        for name, value in [*labelled, *kwargs.items()]
    )


def _holds(value: Any, secrets: list[Any]) -> bool:
    found = {str(leaf) for leaf in _leaves(value)}
    for secret in {str(leaf) for leaf in _leaves(secrets)} - {"", "None", "True", "False"}:
        if secret in found or (len(secret) >= 3 and any(secret in text for text in found)):
            return True
    return False


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _cut(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # JSON can carry lone surrogates, a page can't
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}\n… {len(text) - SHOWN} characters more …"
