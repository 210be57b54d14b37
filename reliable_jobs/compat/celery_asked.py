"""Celery: what a result backend is asked. Needs no loaded apps."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from celery import states

from reliable_jobs.compat import celery_groups
from reliable_jobs.compat.celery import CELERY

with CELERY.importing():
    from celery.app.backends import by_url
    from celery.backends.asynchronous import AsyncBackendMixin
    from celery.backends.base import BaseBackend, DisabledBackend
    from celery.backends.rpc import RPCBackend

_BASE = "celery.backends.base:Backend"
_SYNC = "celery.backends.base:SyncBackendMixin"
TESTS = ["test_results", "test_ledger_backend"]
#: What each takes; nothing, where it is an attribute.
_ASKED = {
    "get_task_meta": ("task_id", "cache"),
    "meta_from_decoded": ("meta",),
    "is_cached": ("task_id",),
    "_ensure_not_eager": (),
    "persistent": (),
    "supports_autoexpire": (),
}
_WAITED_FOR = {
    "wait_for_pending": (
        "result",
        "timeout",
        "interval",
        "no_ack",
        "on_message",
        "on_interval",
        "callback",
        "propagate",
    ),
    "wait_for": ("task_id", "timeout", "interval", "no_ack", "on_interval"),
    "add_pending_result": ("result", "weak"),
    "remove_pending_result": ("result",),
    "iter_native": ("result",),
}


@CELERY.undocumented("backends.by_url", at="celery.app.backends:by_url", takes=("backend", "loader"), tests=TESTS)
def backend_at(url: str | None, app: Any) -> Any:
    """The result backend of a URL or a name, as the setting ``result_backend`` has it; Celery's disabled one for None.

    Raises:
        celery.exceptions.ImproperlyConfigured: there is no such backend.
    """
    make, rest = by_url(url, app.loader)
    return make(app=app, url=rest)


@CELERY.undocumented("base.BaseBackend", at="celery.backends.base:BaseBackend", tests=TESTS)
@CELERY.undocumented("Backend._get_task_meta_for", inside=f"{_BASE}.get_task_meta", tests=TESTS)
@CELERY.undocumented("Backend.thread_safe", inside=f"{_BASE}.__init__", tests=TESTS)
@CELERY.members(_BASE, _ASKED, tests=TESTS)
@CELERY.members(_SYNC, _WAITED_FOR, tests=TESTS)
class AskedBackend(BaseBackend):
    """The half of :class:`~reliable_jobs.compat.celery_backend.AnsweringBackend` that is asked.

    Args:
        app: the Celery app.
        url: of the other backend, as in ``Backend+redis://…``; none by default.
        wrapped: the other backend itself.
    """

    #: A group that waits for its tasks asks for all of them at once: see :meth:`get_many`.
    supports_native_join = True
    # Of Celery 5.7: what the wrapped backend can't do, that one says.
    supports_result_compression = True
    supports_failure_expires = True

    def __init__(self, app: Any, url: str | None = None, wrapped: Any = None, **kwargs: Any) -> None:
        super().__init__(app, url=url, max_cached_results=-1, **kwargs)
        self.wrapped = backend_at(url, app) if wrapped is None else wrapped
        #: Whether the project has not configured this backend, but the wrapped one.
        self.implicit = wrapped is not None
        self.supports_autoexpire = self.wrapped.supports_autoexpire or isinstance(self.wrapped, DisabledBackend)
        self.thread_safe = self.wrapped.thread_safe
        self.persistent = True

    def __getattr__(self, name: str) -> Any:
        """What only the wrapped backend has: a project that asks ``app.backend`` for its Redis client goes on."""
        if name.startswith("__") or name == "wrapped":
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    # --- for the subclass ---------------------------------------------------------------------------------------------

    def is_own(self, task_id: str, request: Any) -> bool:
        """Whether a task is one of the subclass's.

        Args:
            request: the task's, where it is known.
        """
        raise NotImplementedError

    def meta_of(self, task_id: str) -> dict[str, Any]:
        """What is known of a task."""
        raise NotImplementedError

    def metas_of(self, task_ids: list[str]) -> dict[str, dict[str, Any]]:
        """What is known of tasks, by their ids."""
        raise NotImplementedError

    def are_elsewhere(self, task_ids: list[str]) -> bool:
        """Whether of these tasks the wrapped backend alone knows, as far as can be seen now."""
        raise NotImplementedError

    def has_ended(self, task_id: str, state: str, value: Any, request: Any) -> None:
        """The tracer tells how a run of an own task has ended. Not called where its result is ignored."""
        raise NotImplementedError

    def has_said(self, task_id: str, state: str, meta: Any, request: Any) -> None:
        """An own task says something of itself; or the tracer, that it has started."""
        raise NotImplementedError

    def forget_own(self, task_id: str) -> bool:
        """Empty what is known of a task, if it is an own one; returns whether it is."""
        raise NotImplementedError

    def keep_group(self, group_id: str, results: Any) -> None:
        """Keep the results of a group, where no other backend does.

        Args:
            results: ids, as a result's ``as_tuple()`` has them.
        """
        raise NotImplementedError

    def kept_group(self, group_id: str) -> Any:
        """What :meth:`keep_group` was given; None for an unknown group."""
        raise NotImplementedError

    def drop_group(self, group_id: str) -> None:
        raise NotImplementedError

    def pauses(
        self, timeout: float | None, interval: float | None, on_interval: Callable[[], Any] | None
    ) -> Callable[[], None]:
        """Makes what is called between two looks. It raises celery.exceptions.TimeoutError when the time is over."""
        raise NotImplementedError

    def check_waits(self, task_ids: Iterable[str]) -> None:
        """Raises where waiting for one of these tasks here could never end."""

    # --- what Celery asks ---------------------------------------------------------------------------------------------

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        self._ensure_not_eager()
        return self.meta_of(task_id)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return self.meta_of(task_id)

    def task_result_exists(self, task_id: str) -> bool:
        return bool(self.meta_of(task_id)["status"] != states.PENDING)

    def meta_from_decoded(self, meta: dict[str, Any]) -> dict[str, Any]:
        # As meta_of() gives it; or a message to a result of the wrapped backend.
        is_message = meta["status"] in states.EXCEPTION_STATES and isinstance(meta["result"], dict)
        return self.wrapped.meta_from_decoded(meta) if is_message else meta

    def is_cached(self, task_id: str) -> bool:
        return True  # what a group's error report asks before it looks

    def wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        callback: Any = None,
        propagate: bool = True,
    ) -> Any:
        self.check_waits([result.id])
        if self._comes_as_message(result):
            self.wrapped.add_pending_result(result)
            return self.wrapped.wait_for_pending(
                result,
                timeout=timeout,
                interval=interval,
                no_ack=no_ack,
                on_message=on_message,
                on_interval=functools.partial(_look_meanwhile, result, on_interval),
                callback=callback,
                propagate=propagate,
            )
        self._ensure_not_eager()
        pause, told = self.pauses(timeout, interval, on_interval), None
        while True:
            meta = self.meta_of(result.id)
            if on_message is not None and meta["status"] != states.PENDING and _what_it_says(meta) != told:
                told = _what_it_says(meta)
                on_message(dict(meta))
            if meta["status"] in states.READY_STATES:
                result._maybe_set_cache(meta)
                return result.maybe_throw(propagate=propagate, callback=callback)
            pause()

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
    ) -> dict[str, Any]:
        self._ensure_not_eager()
        pause = self.pauses(timeout, interval, on_interval)
        while (meta := self.meta_of(task_id))["status"] not in states.READY_STATES:
            pause()
        return meta

    def iter_native(self, result: Any, timeout: float | None = None, *args: Any, **kwargs: Any) -> Iterator[Any]:
        began = time.monotonic()
        sent_to_this_process = [one for one in result.results or () if self._comes_once(one)]
        others = [one for one in result.results or () if one not in sent_to_this_process]
        yield from super().iter_native(SimpleNamespace(results=others), timeout, *args, **kwargs)
        for one in sent_to_this_process:
            left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
            one.get(timeout=left, propagate=False, disable_sync_subtasks=False)
            yield one.id, one._cache

    def _comes_once(self, result: Any) -> bool:
        """Whether a result is a message to the process that called the task, which can't be asked for again."""
        return isinstance(self.wrapped, RPCBackend) and hasattr(result, "_cache") and self._comes_as_message(result)

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        max_iterations: int | None = None,
        READY_STATES: Any = states.READY_STATES,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        left = dict.fromkeys(map(str, task_ids))
        self.check_waits(left)
        pause, rounds = self.pauses(timeout, interval, on_interval), 0
        while left:
            for task_id, meta in self.metas_of(list(left)).items():
                if meta["status"] in READY_STATES:
                    del left[task_id]
                    if on_message is not None:
                        on_message(meta)
                    yield task_id, meta
            rounds += 1
            if not left or rounds == max_iterations:
                return
            pause()

    def add_pending_result(self, result: Any, weak: bool = False) -> Any:
        # Not of then() as a group calls it for each of its parts: that would be a SELECT for each.
        if weak and not celery_groups.holds(self, result) and self._comes_as_message(result):
            self.wrapped.add_pending_result(result, weak=weak)
        return result

    def _comes_as_message(self, result: Any) -> bool:
        """Whether the wrapped backend tells of a result, as far as can be seen now."""
        if getattr(result, "of_reliable_task", False) or not isinstance(self.wrapped, AsyncBackendMixin):
            return False
        return self.are_elsewhere([result.id])

    def remove_pending_result(self, result: Any) -> Any:
        if isinstance(self.wrapped, AsyncBackendMixin):
            self.wrapped.remove_pending_result(result)
        return result


def _what_it_says(meta: dict[str, Any]) -> tuple[str, Any]:
    """By what two answers differ for somebody who is told of each."""
    return meta["status"], meta["result"] if meta["status"] not in states.EXCEPTION_STATES else str(meta["result"])


def _look_meanwhile(result: Any, on_interval: Callable[[], Any] | None) -> None:
    """While another backend waits for a message of its own: look whether the task has turned out to be one of ours."""
    result.ready()
    if on_interval is not None:
        on_interval()
