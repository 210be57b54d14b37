"""Celery's built-in tasks that take part in workflows, as reliable tasks.

Every ``replace(group)`` ends in ``celery.accumulate``. ``celery.map``, ``celery.starmap`` and ``celery.chunks`` are
what ``task.map()`` and its kin call; they are atomic where the task that they call is.
"""

from __future__ import annotations

from typing import Any

from celery import Celery, chunks, signature

from reliable_jobs.task.reliable_task import ReliableTask


class _Builtin(ReliableTask[..., Any]):
    """Called by Celery's canvas; takes whatever that passes."""

    abstract = True
    typing = False


class Accumulate(_Builtin):
    name = "celery.accumulate"

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Its arguments, or the one that ``index`` says."""
        index = kwargs.get("index")
        return args if index is None else args[index]


class _OfTask(_Builtin):
    """Calls another task's function, for each item."""

    abstract = True

    @property
    def atomic(self) -> bool:  # type: ignore[override] # only read
        """As the task that is called, where a request says which; a plain one wants no transaction around it."""
        args, kwargs = self.request.args or (), self.request.kwargs or {}
        called = kwargs.get("task") or (args[0] if args else None)
        if called is None:
            return True
        name = called.get("task") if isinstance(called, dict) else called
        return bool(getattr(self.app.tasks.get(name), "atomic", False))

    def _function(self, task: Any) -> Any:
        return signature(task, app=self.app).type


class Map(_OfTask):
    name = "celery.map"

    def run(self, task: Any, it: Any) -> list[Any]:
        function = self._function(task)
        return [function(item) for item in it]


class StarMap(_OfTask):
    name = "celery.starmap"

    def run(self, task: Any, it: Any) -> list[Any]:
        function = self._function(task)
        return [function(*item) for item in it]


class Chunks(_OfTask):
    name = "celery.chunks"

    def run(self, task: Any, it: Any, n: int) -> Any:
        return chunks.apply_chunks(task, it, n, app=self.app)


def make_reliable(app: Celery) -> None:
    """Put these in the place of Celery's own, once the app has those."""
    for kind in (Accumulate, Map, StarMap, Chunks):
        known = app.tasks.get(kind.name)
        if known is None or getattr(known, "writes_outbox", False):
            continue
        app.tasks.unregister(kind.name)
        app.register_task(type(kind.__name__, (kind,), {})())  # a class belongs to one app
