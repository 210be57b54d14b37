"""Which chords are ours: those of whose headers the rows tell when everything has ended.

A reliable task's row always does. A plain task's row is sent, and owes until its worker says that the task has ended:
Celery's tracer tells the result backend, which is ours in each worker of the project. Where nobody would tell us, or
something of the header follows the plain task, which only its worker would start, the chord is Celery's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery.result import GroupResult

from reliable_jobs.compat.celery_groups import header_of_chord

logger = logging.getLogger(__name__)

#: Plain tasks of which this process has said that they make a chord Celery's.
_said: set[str] = set()


def is_ours(app: Any, results: Iterable[Any], reports: type) -> bool:
    """Whether a chord whose header is about to be called is ours.

    Args:
        results: the frozen results of the header's tasks.
        reports: class of the result backends that tell us of the end of plain tasks.
    """
    reliable = [getattr(node, "of_reliable_task", False) for node in _nodes(results)]
    if all(reliable):
        return True
    header = header_of_chord()
    if header is None or not any(reliable):
        return False
    for name, is_last in _tasks(app, header):
        why = "" if _is_reliable(app, name) else _why_not(app, name, is_last, reports)
        if why:
            if name not in _said:
                _said.add(name)
                logger.warning(
                    "A chord with the plain task %s in its header is Celery's own, and only as safe as that: %s. See "
                    '"Compose" in docs/how-to.md.',
                    name,
                    why,
                )
            return False
    return True


def _why_not(app: Any, name: str, is_last: bool, reports: type) -> str:
    """Why the row of a plain task would not tell when its part has ended; "" where it would."""
    if not is_last:
        return "another task of the header follows it"
    if name not in app.tasks:
        return "it is not registered here"
    return "" if isinstance(app.tasks[name].backend, reports) else "it has a result backend of its own"


def _nodes(results: Iterable[Any]) -> Iterator[Any]:
    """The frozen results of a header's tasks, and of those that come before them in a chain."""
    for result in results:
        node = result
        while node is not None:
            if isinstance(node, GroupResult):
                yield from _nodes(node.results)
            else:
                yield node
            node = node.parent


def _tasks(app: Any, signature: Mapping[str, Any], is_last: bool = True) -> Iterator[tuple[str, bool]]:
    """The names of the single tasks of a frozen signature, each with whether nothing of the header follows it."""
    inside, kind = signature.get("kwargs") or {}, signature.get("subtask_type")
    if (signature.get("options") or {}).get("chain"):
        is_last = False
    if kind == "chain":
        *before, end = inside["tasks"]
        for step in before:
            yield from _tasks(app, step, False)
        yield from _tasks(app, end, is_last)
    elif kind == "group":
        for task in inside["tasks"]:
            yield from _tasks(app, task, is_last)
    elif kind == "chord":
        parts = list(_tasks(app, inside["header"]))
        # Of a header without reliable tasks Celery starts the body.
        ours = any(_is_reliable(app, name) for name, _ in parts)
        yield from ((name, ends and ours) for name, ends in parts)
        yield from _tasks(app, inside["body"], is_last)
    else:
        yield str(signature.get("task")), is_last


def _is_reliable(app: Any, name: str) -> bool:
    return bool(getattr(app.tasks.get(name), "writes_outbox", False))
