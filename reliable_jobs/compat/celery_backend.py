"""Celery: a result backend that answers from elsewhere, around another one. Needs no loaded apps."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

from celery import states
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError
from celery.result import result_from_tuple

from reliable_jobs.compat.celery import CELERY
from reliable_jobs.compat.celery_asked import TESTS, AskedBackend

with CELERY.importing():
    from celery.backends.base import DisabledBackend
    from celery.backends.rpc import RPCBackend

_T = TypeVar("_T", bound="AnsweringBackend")
logger = logging.getLogger(__name__)

_BASE = "celery.backends.base:Backend"
CHORD_TESTS = ["test_backend_names", "test_chords", "test_around_backends"]
#: What Celery's tracer and its results call, and what each takes.
_KEEPS = {
    "store_result": ("task_id", "result", "state", "traceback", "request"),
    "mark_as_done": ("task_id", "result", "request", "store_result", "state"),
    "mark_as_failure": ("task_id", "exc", "traceback", "request", "store_result", "call_errbacks", "state"),
    "mark_as_retry": ("task_id", "exc", "traceback", "request", "store_result", "state"),
    "mark_as_revoked": ("task_id", "reason", "request", "store_result", "state"),
    "forget": ("task_id",),
    "restore_group": ("group_id",),
    "save_group": ("group_id", "result"),
    "delete_group": ("group_id",),
    "process_cleanup": (),
    "as_uri": ("include_password",),
    "cleanup": (),
}
#: What its canvas calls.
_OF_CHORDS = {
    "ensure_chords_allowed": (),
    "apply_chord": ("header_result_args", "body"),
    "set_chord_size": ("group_id", "chord_size"),
    "add_to_chord": ("chord_id", "result"),
    "on_chord_part_return": ("request", "state", "result"),
}


@CELERY.members(_BASE, _KEEPS, tests=TESTS)
@CELERY.members(_BASE, _OF_CHORDS, tests=CHORD_TESTS)
class AnsweringBackend(AskedBackend):
    """A result backend whose subclass knows what became of its own tasks, and which asks another one for all others.
    Celery's names for what it is asked and told are here; the subclass has names of its own.
    """

    @classmethod
    def around(cls: type[_T], backend: Any, app: Any) -> _T:
        """This backend around another one: itself, if it is one; else the one that was made around it before."""
        if isinstance(backend, cls):
            return backend
        known: _T | None = vars(backend).get("reliable_ledger")
        if known is None:
            known = vars(backend)["reliable_ledger"] = cls(app, wrapped=backend)
        return known

    def on_task_call(self, producer: Any, task_id: str) -> Any:
        return self.wrapped.on_task_call(producer, task_id)

    # --- what Celery's tracer and its workers say ---------------------------------------------------------------------

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        own = True
        try:
            if own := self.is_own(task_id, request):
                self.has_said(task_id, state, result, request)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            _say(task_id, error)
        return (
            result if own else self.wrapped.store_result(task_id, result, state, traceback, request=request, **kwargs)
        )

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> None:
        store = store_result and not (request is not None and request.ignore_result)
        if not self._has_taken(task_id, state, result, request, store):
            super().mark_as_done(task_id, result, request, store_result, state)
        elif request is not None and request.chord:  # a chord of somebody else's
            self.on_chord_part_return(request, state, result)

    def mark_as_failure(
        self,
        task_id: str,
        exc: Any,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        if _here.untouched:
            return
        if not self._has_taken(task_id, state, exc, request, store_result):
            super().mark_as_failure(task_id, exc, traceback, request, store_result, call_errbacks, state)
        elif request is not None and request.chord:
            self.on_chord_part_return(request, state, exc)

    def mark_as_retry(
        self,
        task_id: str,
        exc: Any,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        state: str = states.RETRY,
    ) -> Any:
        if not self._has_taken(task_id, state, exc, request, store_result):
            return super().mark_as_retry(task_id, exc, traceback, request, store_result, state)
        return exc

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        if not self._has_taken(task_id, state, None, request, False):
            super().mark_as_revoked(task_id, reason, request, store_result, state)
        elif request is not None and request.chord:
            self.on_chord_part_return(request, state, TaskRevokedError(reason))

    def _has_taken(self, task_id: str, state: str, value: Any, request: Any, stores: bool) -> bool:
        """Tell the subclass, if the task is its own; says whether it is. What follows such a task is in its settlement.

        Nothing that is settled is lost by an error here: Celery's tracer must go on to its hooks and signals.
        """
        try:
            if not self.is_own(task_id, request):
                return False
            if stores:
                self.has_ended(task_id, state, value, request)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            _say(task_id, error)
        return True

    def store_copy(self, task_id: str, value: Any, state: str, traceback: Any, request: Any) -> None:
        """Store a result in the wrapped backend.

        Raises:
            Exception: of any kind, it can't.
        """
        self.wrapped.store_result(task_id, value, state, traceback, request=request)

    # --- what else a backend keeps ------------------------------------------------------------------------------------

    def forget(self, task_id: str) -> None:
        own = self.forget_own(task_id)
        try:
            if not (own and isinstance(self.wrapped, DisabledBackend)):
                self.wrapped.forget(task_id)
        except NotImplementedError:
            if not own:
                raise

    def save_group(self, group_id: str, result: Any) -> Any:
        with contextlib.suppress(NotImplementedError):  # rpc:// keeps none
            if not isinstance(self.wrapped, DisabledBackend):
                return self.wrapped.save_group(group_id, result)
        self.keep_group(group_id, result.as_tuple())
        return result

    def restore_group(self, group_id: str, cache: bool = True) -> Any:
        with contextlib.suppress(NotImplementedError):
            if not isinstance(self.wrapped, DisabledBackend):
                return self.wrapped.restore_group(group_id, cache=False)
        kept = self.kept_group(group_id)
        return None if kept is None else result_from_tuple(kept, app=self.app)

    def delete_group(self, group_id: str) -> Any:
        with contextlib.suppress(NotImplementedError):
            if not isinstance(self.wrapped, DisabledBackend):
                return self.wrapped.delete_group(group_id)
        self.drop_group(group_id)
        return None

    def cleanup(self) -> None:
        self.wrapped.cleanup()

    def process_cleanup(self) -> None:
        self.wrapped.process_cleanup()

    def as_uri(self, include_password: bool = False) -> str:
        wrapped = "" if isinstance(self.wrapped, DisabledBackend) else self.wrapped.as_uri(include_password)
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        return f"{kind}+{wrapped}" if wrapped else kind

    # --- chords -------------------------------------------------------------------------------------------------------

    def begins_chord(self, group_id: Any, results: Any, body: Any) -> bool:
        """The header of a chord is called next; says whether the chord is the subclass's. So do the following.

        Args:
            results: of the header's tasks.
            body: its signature.
        """
        raise NotImplementedError

    def takes_size(self, group_id: Any, size: int) -> bool:
        """How many tasks a header has; its last one is called next."""
        raise NotImplementedError

    def takes_added_part(self, group_id: Any, result: Any) -> bool:
        """A running part adds a task to its chord."""
        raise NotImplementedError

    def takes_end_of_part(self, request: Any, state: str, result: Any) -> bool:
        """A task of a header has ended."""
        raise NotImplementedError

    def ensure_chords_allowed(self) -> None:
        """The subclass's chords need no other backend."""

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> Any:
        group_id, results, *_ = header_result_args
        if self.begins_chord(group_id, results, body):
            return None
        self.wrapped.ensure_chords_allowed()
        return self.wrapped.apply_chord(header_result_args, body, **kwargs)

    def set_chord_size(self, group_id: str, chord_size: int) -> Any:
        return None if self.takes_size(group_id, chord_size) else self.wrapped.set_chord_size(group_id, chord_size)

    def add_to_chord(self, chord_id: str, result: Any) -> Any:
        return None if self.takes_added_part(chord_id, result) else self.wrapped.add_to_chord(chord_id, result)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> Any:
        if self.takes_end_of_part(request, state, result):
            return None
        return self.wrapped.on_chord_part_return(request, state, result, **kwargs)

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        given = {"wrapped": self.wrapped} if self.implicit else {"url": self.url}
        return super().__reduce__(args, {**(kwargs or {}), **given})


def _say(task_id: str, error: Exception) -> None:
    logger.warning("Task %s: the result backend could not take what it was told: %r", task_id, error)


class _Here(threading.local):
    untouched = False


_here = _Here()


@contextlib.contextmanager
def results_untouched() -> Iterator[None]:
    """Inside, an :class:`AnsweringBackend` is told of failures in vain: Celery marks tasks as failed that it can't run,
    from the worker's parent process."""
    _here.untouched = True
    try:
        yield
    finally:
        _here.untouched = False


def is_disabled(backend: Any) -> bool:
    """Whether the project has no result backend."""
    if isinstance(backend, AnsweringBackend):
        return backend.implicit and is_disabled(backend.wrapped)
    return isinstance(backend, DisabledBackend)


@CELERY.undocumented("rpc.RPCBackend", at="celery.backends.rpc:RPCBackend", tests=["test_results"])
def can_be_read(backend: Any) -> bool:
    """Whether the project has a result backend that anybody may read. Not ``rpc://``: to read a result would declare a
    queue, and each can be read once."""
    return not is_disabled(backend) and not isinstance(backend, RPCBackend)


def wrapped_by(backend: Any) -> Any:
    """The result backend that the project has configured, without ours around it."""
    return backend.wrapped if isinstance(backend, AnsweringBackend) else backend
