"""Celery: a worker's state, and a message as the parent process sees it.

What belongs to a worker alone is imported when it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from reliable_jobs.compat.celery import CELERY

# --- the worker's state -----------------------------------------------------------------------------------------------


@CELERY.undocumented("state.should_stop", at="celery.worker.state:should_stop", tests=["test_watchdog"])
@CELERY.undocumented("state.should_terminate", at="celery.worker.state:should_terminate", tests=["test_watchdog"])
def is_stopping() -> bool:
    """Whether the worker shuts down."""
    from celery.worker import state

    # None and False are "no"; 0 is an exit status.
    return not all(flag is None or flag is False for flag in (state.should_stop, state.should_terminate))


@CELERY.undocumented(
    "state.should_terminate",
    at="celery.worker.state:should_terminate",
    tests=["test_parent_endings"],
)
def is_terminating() -> bool:
    """Whether the worker shuts down at once, and kills the runs."""
    from celery.worker import state

    return bool(state.should_terminate)


@CELERY.undocumented("state.should_stop", at="celery.worker.state:should_stop", tests=["test_watchdog"])
def stop_worker(status: int) -> None:
    """Have the worker shut down warmly, where its loop still turns, and its process end with a status."""
    from celery.worker import state

    state.should_stop = status


@CELERY.undocumented("state.active_requests", at="celery.worker.state:active_requests", tests=["test_processes"])
@CELERY.undocumented("Request.time_start", at="celery.worker.request:Request.time_start", tests=["test_processes"])
def active_runs() -> list[tuple[str, float]]:
    """The ids of the tasks that run, and when each began by this machine's clock, the oldest first."""
    from celery.worker import state

    for _ in range(3):
        try:
            running = list(state.active_requests)
        except RuntimeError:  # it has changed meanwhile
            continue
        return sorted(((one.id, one.time_start) for one in running if one.time_start), key=lambda run: run[1])
    return []


@CELERY.undocumented(
    "Request.time_start", at="celery.worker.request:Request.time_start", tests=["test_delivery_batches"]
)
def seconds_taken(request: Any) -> float:
    """For how long the pool has had a message, by this machine's clock; 0 while it waits."""
    return time.time() - request.time_start if request.time_start else 0.0


@CELERY.undocumented("state.requests", at="celery.worker.state:requests", tests=["test_delivery_batches"])
def show_requests(parts: Iterable[Any]) -> None:
    """Let remote control find these by their ids: ``revoke`` with ``terminate``, and ``query_task``."""
    from celery.worker import state

    state.requests.update({part.id: part for part in parts})


@CELERY.undocumented("state.requests", at="celery.worker.state:requests", tests=["test_delivery_batches"])
def hide_requests(parts: Iterable[Any]) -> None:
    """Take back :func:`show_requests`; a message of the same id that came meanwhile stays."""
    from celery.worker import state

    for part in parts:
        if state.requests.get(part.id) is part:
            del state.requests[part.id]


@CELERY.undocumented(
    "LimitedSet.as_dict",
    at="celery.utils.collections:LimitedSet.as_dict",
    tests=["test_parent_endings"],
)
def revoked_at() -> dict[Any, float]:
    """The revoked task ids that the worker remembers, and when each was revoked, by the monotonic clock."""
    from celery.worker import state

    found: dict[Any, float] = state.revoked.as_dict()
    return found


@CELERY.undocumented("state.revoked_stamps", at="celery.worker.state:revoked_stamps", tests=["test_revoked"])
def revoked_stamps() -> dict[str, Any]:
    """The stamps by which messages are revoked, as the worker remembers them: by header, one value or several."""
    from celery.worker import state

    return state.revoked_stamps


# --- a message, as the parent process sees it -------------------------------------------------------------------------


@CELERY.undocumented(
    "EventDispatcher.groups",
    inside="celery.events.dispatcher:EventDispatcher.send",
    tests=["test_delivery_batches"],
)
def tells_task_events(eventer: Any) -> bool:
    """Whether a worker's monitors hear of its tasks: ``-E``, or a monitor has asked for it. Every worker's dispatcher
    sends heartbeats."""
    return bool(eventer is not None and eventer.enabled and (not eventer.groups or "task" in eventer.groups))


payload_of = CELERY.attribute(
    "Request._payload",
    "A message's arguments, keyword arguments and what is to follow, decoded.",
    at="celery.worker.request:Request._payload",
    tests=["test_bad_messages"],
)


@CELERY.undocumented(
    "Request._already_revoked",
    "Request._already_cancelled",
    inside="celery.worker.request:Request.on_failure",
    tests=["test_parent_endings"],
)
def was_revoked(request: Any) -> bool:
    """Whether the worker has ended a run itself, because it was revoked or its connection was lost."""
    return bool(request._already_revoked or request._already_cancelled)


@CELERY.undocumented(
    "time.timezone.to_system",
    at="celery.utils.time:_Zone.to_system",
    takes=("dt",),
    tests=["test_compat_names", "test_bad_messages"],
)
def check_eta(request: Any) -> None:
    """Compute the moment at which a worker would start a message with an ETA, as Celery does.

    Raises:
        OverflowError, ValueError: it can't be computed, which would end the worker.
    """
    from celery.utils.time import timezone
    from kombu.asynchronous.timer import to_timestamp

    to_timestamp(timezone.to_system(request.eta) if request.utc else request.eta, request.app.timezone)
