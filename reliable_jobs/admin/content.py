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
from django.utils.translation import gettext as _
from kombu.serialization import loads

from reliable_jobs.admin.wording import number
from reliable_jobs.compat.django_admin import import_from_apps
from reliable_jobs.message import result_text
from reliable_jobs.message.decode import NotDecoded, TooLarge, arguments, envelope_of, headers_of
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
        return Shown(_cut(text), _("Sensitive arguments are hidden."))
    masked = isinstance(task, ReliableTask) and bool(task.sensitive)
    try:
        args, kwargs = arguments(job)
        if masked and task is not None:
            # A message from elsewhere: its sender knew nothing of ``sensitive``, the code at hand does.
            return Shown(_cut("\n".join(task._shown(args, kwargs))), _("Sensitive arguments are hidden."))
        return Shown(_cut(_lines(task, args, kwargs)), "" if args or kwargs else _("No arguments."))
    except TooLarge as error:
        return _undecoded(job, masked, _("Too large to show (%(error)s): %(size)s bytes of type %(type)s."), error)
    except NotDecoded as error:
        return _undecoded(job, masked, _("Not shown (%(error)s): %(size)s bytes of type %(type)s."), error)
    except (ValueError, RecursionError) as error:
        return _undecoded(job, masked, _("Can't be decoded (%(error)s): %(size)s bytes of type %(type)s."), error)


def _undecoded(job: Job, masked: bool, note: str, error: Exception) -> Shown:
    payload = bytes(job.payload)
    values = {"error": error, "size": number(len(payload)), "type": job.content_type or "?"}
    return Shown(HIDDEN if masked else repr(payload[:500]), note % values)


def shown_result(job: Job) -> Shown:
    """The result as it was stored, unless it holds the value of a sensitive argument."""
    if job.result is None:
        return Shown("", _("No result is stored."))
    if result_text.is_wrapped(job.result):
        return Shown("", _("The result is stored by the project's result_serializer, and is not decoded here."))
    task = _task(job)
    if _flagged(job) or (isinstance(task, ReliableTask) and task.sensitive):
        try:
            leaks = not isinstance(task, ReliableTask) or _holds(
                loads(job.result, "application/json", "utf-8"), task.secrets(*arguments(job))
            )
        except Exception:  # what can't be compared is not shown
            leaks = True
        if leaks:
            return Shown(HIDDEN, _("The result may hold a sensitive argument."))
    return Shown(_cut(job.result))


def reliable_task(job: Job) -> ReliableTask[..., Any] | None:
    """The job's task, where this process has its code."""
    task = _task(job)
    return task if isinstance(task, ReliableTask) else None


def editable_arguments(job: Job) -> dict[str, Any] | None:
    """The arguments for a person to change: ``args`` and ``kwargs``; None where they are hidden or are no JSON."""
    task = reliable_task(job)
    if task is None or task.sensitive or _flagged(job):
        return None
    try:
        args, kwargs = arguments(job)
        json.dumps([args, kwargs])
    except (NotDecoded, TypeError, ValueError, RecursionError):
        return None
    return {"args": list(args), "kwargs": kwargs}


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
    return bool((envelope_of(job) or {}).get("sensitive"))


def _lines(task: Task | None, args: list[Any], kwargs: dict[str, Any]) -> str:
    names = task._positional_names() if isinstance(task, ReliableTask) else []
    names += [_("argument %(number)d") % {"number": one} for one in range(len(names) + 1, len(args) + 1)]
    return "\n".join(
        f"{name} = {pprint.pformat(value, width=100, compact=True, sort_dicts=False)}"
        for name, value in [*zip(names, args, strict=False), *kwargs.items()]
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
    if len(text) <= SHOWN:
        return text
    more = _("… %(count)s characters more …") % {"count": number(len(text) - SHOWN)}
    return f"{text[:SHOWN]}\n{more}"
