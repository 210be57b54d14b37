"""``AdoptedTask``: the base class of a whole Celery app, under which every task keeps its meaning in bare Celery.

Its calls are rows, and no job is lost; but the task function is not put into a transaction, and it is not begun twice
unless the task says that it may be. ``reliable_jobs_check --adopt`` and docs/atomic.md help to make tasks atomic then,
one by one.
"""

from __future__ import annotations

import abc
import fnmatch
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from celery import Celery, Task

from reliable_jobs.conf import settings
from reliable_jobs.message.row_to_message import PICKLE
from reliable_jobs.task.reliable_task import ReliableTask
from reliable_jobs.task_types import P, R_co

#: Celery's own tasks (chord_unlock, backend_cleanup …), which its workers call by their plain meaning.
CELERYS = "celery.*"
#: A run that is not begun again has nothing to be taken away for: its lease is extended as long as its process lives.
_TEN_YEARS = 10 * 365 * 86400.0


class Adoption(abc.ABCMeta):
    """Leaves tasks out of an app-wide adoption: the method resolution order of a task that is left out skips the
    classes of this package, so nothing of them is left on it, and ``super()`` in the project's own base classes goes on
    to Celery's. An ABCMeta, because projects mix their base classes with abstract ones.
    """

    def mro(cls) -> list[type]:
        order = super().mro()
        if not _is_task(order) or why_plain(cls, order) is None:
            return order
        return [cls, *(base for base in order[1:] if not _is_ours(base))]


def why_plain(cls: type, order: Sequence[type] | None = None) -> str | None:
    """Why a task's class stays a plain Celery task; None when it is adopted.

    Args:
        order: its bases, where it has no ``__mro__`` yet.
    """
    order = cls.__mro__ if order is None else order
    name = name_of(cls, order)
    if fnmatch.fnmatchcase(name, CELERYS):
        return "it is Celery's own"
    for pattern in settings.PLAIN_TASKS:
        if fnmatch.fnmatchcase(name, pattern):
            return f"PLAIN_TASKS has {pattern!r}"
    if _inherited(order, "serializer") in PICKLE:
        return "its serializer is pickle"
    return None


def name_of(cls: type, order: Sequence[type] | None = None) -> str:
    """The name under which Celery registers a task class, as far as it is known before it is registered."""
    order = cls.__mro__ if order is None else order
    # Not cls.__module__: while the order of its bases is made, that is the metaclass's.
    return str(_inherited(order, "name") or f"{vars(cls).get('__module__', '')}.{cls.__name__}")


def _inherited(order: Sequence[type], attribute: str) -> Any:
    return next((vars(base)[attribute] for base in order if vars(base).get(attribute) is not None), None)


def _is_task(order: Sequence[type]) -> bool:
    """Whether a class has a task function: base classes have none, and decide nothing."""
    return any("run" in vars(base) for base in order if base is not Task)


def _is_ours(base: type) -> bool:
    # Celery gives the app's own base class, app.Task, the module of task_cls; that one holds the app, and stays.
    where = base.__module__
    return where.startswith("reliable_jobs.") and getattr(sys.modules.get(where), base.__name__, None) is base


class AdoptedTask(ReliableTask[P, R_co], metaclass=Adoption):
    """Base class for ``Celery("proj", task_cls="reliable_jobs:AdoptedTask")``.

    What it does otherwise than :class:`~reliable_jobs.task.reliable_task.ReliableTask`:

    - ``atomic`` is False, unless the task says True.
    - ``acks_late`` keeps Celery's meaning. Where it is off (Celery's default, ``task_acks_late``), a task function that
      has begun is not begun again: a job whose worker dies, whose hard time limit passes or whose database goes away in
      the middle ends ``failed``, visibly, and a person may requeue it. Where it is on, such a job runs again.
    - Database connections are closed around it, as Celery does it: what it leaves in its session meets no other task.
    - Celery's own tasks, those named in ``RELIABLE_JOBS["PLAIN_TASKS"]`` and those with the pickle serializer stay
      plain Celery tasks.

    A task with ``atomic=True`` is in all this like one with ``base=ReliableTask``.

    Example::

        app = Celery("proj", task_cls="reliable_jobs:AdoptedTask", set_as_current=False)
    """

    acks_late: Any = None  # Celery's own default: task_acks_late rules
    reject_on_worker_lost: Any = None
    atomic = False
    reruns = False
    #: What acks_late was before it was set for the message.
    _late: ClassVar[bool]

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Celery's hook: here task, settings and annotations have said what they want of ``acks_late``."""
        super().on_bound(app)
        if not _is_task(cls.__mro__):
            return  # a base class: its tasks will say
        if "_late" not in vars(cls):
            source = next(base for base in cls.__mro__ if "acks_late" in vars(base))
            # The class of another task has been bound already, and holds what is set below.
            cls._late = bool(vars(source).get("_late", vars(source)["acks_late"]))
        if "reruns" not in vars(cls):
            cls.reruns = cls.atomic or cls._late
        # From here they are about the message, which is ours: it must outlive the worker, or the job would be late.
        cls.acks_late = cls.reject_on_worker_lost = True
        cls.keeps_connections = cls.atomic

    def run_deadline(self) -> float:
        return super().run_deadline() if self.reruns else _TEN_YEARS
