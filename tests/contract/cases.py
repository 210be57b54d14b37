"""The table: what a task is made with, what its function does, how it is called.

Each case is run as a plain task and as a reliable one; test_own_contract.py compares what is heard of the two.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import current_app
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from tests.contract.notes import note, read


@dataclasses.dataclass(frozen=True)
class Case:
    """
    Attributes:
        body: the task function. It is bound.
        made: attributes of the task.
        call: options of ``apply_async``; args and kwargs too.
        covers: which attributes, options and hooks the case asks after.
        hooks: methods of the task's class in place of those that only take note.
        runs: how often the function is begun before the task has ended.
        last: what is heard last of a run.
    """

    body: Callable[..., Any]
    made: dict[str, Any] = dataclasses.field(default_factory=dict)
    call: dict[str, Any] = dataclasses.field(default_factory=dict)
    covers: tuple[str, ...] = ()
    hooks: dict[str, Any] = dataclasses.field(default_factory=dict)
    runs: int = 1
    last: str = "task_postrun"


def default_queue() -> str:
    return str(current_app.conf.task_default_queue)


def returns(self: Any, value: Any = 1) -> Any:
    return value


def fails(self: Any, *args: Any) -> None:
    raise ValueError("no", *args)


def asks_again(self: Any) -> str:
    if self.request.retries < 1:
        raise self.retry(exc=ValueError("first"), countdown=0)
    return f"retries {self.request.retries}"


def asks_again_without_an_error(self: Any) -> str:
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return "second"


def asks_and_goes_on(self: Any) -> str:
    if self.request.retries < 1:
        self.retry(countdown=0, throw=False)
        return "first"
    return "second"


def asks_with_other_arguments(self: Any, value: int = 0) -> int:
    if value < 2:
        raise self.retry(args=(value + 1,), kwargs={}, countdown=0)
    return value


def asks_until_refused(self: Any) -> None:
    raise self.retry(exc=KeyError("over"), countdown=0)


def fails_until_third(self: Any) -> str:
    if self.request.retries < 2:
        raise ConnectionError(f"try {self.request.retries}")
    return "third"


def ignores(self: Any) -> None:
    raise Ignore


def rejects(self: Any) -> None:
    raise Reject("why", requeue=False)


def rejects_once(self: Any) -> str:
    if sum(text.startswith("run ") for text in read(Path(os.environ["TEST_NOTES"]))[self.request.id]) < 2:
        raise Reject("again", requeue=True)
    return "second"


def says_and_ignores(self: Any) -> None:
    self.update_state(state="NAMED", meta={"by": "itself"})
    raise Ignore


def sleeps_softly(self: Any) -> str:
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "in time"
    return "never"


def sleeps(self: Any) -> None:
    time.sleep(30)


def exits(self: Any) -> None:
    raise SystemExit(3)


def starts_another(self: Any) -> str:
    others = ANOTHER[getattr(self, "writes_outbox", False)]
    others.delay("child")
    others.apply_async(("not a child",), add_to_parent=False)
    return f"{len(self.request.children)} children"


def replaces_itself(self: Any) -> Any:
    return self.replace(ANOTHER[getattr(self, "writes_outbox", False)].s("replaced"))


def shows_request(self: Any, *args: Any, **kwargs: Any) -> None:
    note(self.request.id, f"request {describe(self.request)}")


def raises(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("in a hook")


#: The task that others call, by whether it is to be reliable. Filled in by tasks.py.
ANOTHER: dict[bool, Any] = {}

#: Of a request, what is not the same in two runs of anything.
_OWN = ("id", "root_id", "correlation_id", "reply_to", "delivery_tag", "children", "_children")


def describe(request: Any) -> dict[str, Any]:
    """A request's fields as they can be compared."""
    from celery.app.task import Context

    names = {name for name in vars(Context) if not name.startswith("_") and not callable(getattr(Context, name))}
    fields: dict[str, Any] = {}
    for name in sorted(names - {*_OWN, "properties", "as_execution_options", "children"}):
        fields[name] = _comparable(name, getattr(request, name, None))
    fields["id is root_id"] = request.root_id == request.id
    fields["correlation_id is id"] = request.correlation_id == request.id
    fields["has reply_to"] = bool(request.reply_to)
    return fields


def _comparable(name: str, value: Any) -> Any:
    if name in ("eta", "expires") and value is not None:
        moment = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(str(value))
        away = (moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
        return f"{type(value).__name__}, {'past' if away < 0 else 'some minutes away' if away < 3000 else 'hours away'}"
    if name == "delivery_info" and value:
        known = {key: value[key] for key in ("exchange", "routing_key", "redelivered")}
        # Of a message without a priority kombu says 0 or None, by the way in which it was called.
        return {**known, "priority": value["priority"] or 0}
    if name == "origin":
        return bool(value)
    if name == "hostname":
        return str(value).rpartition("@")[2]
    if name == "headers":
        # Celery takes each header that it does not know for one of the caller's: our pointer too.
        return {key: repr(value[key]) for key in sorted(value or ()) if key in ("tenant", "x")} or None
    return repr(value)


FEW_MINUTES = 600

CASES: dict[str, Case] = {
    # --- how it ends (a limit is longer than a slow machine needs until the function begins) ---
    "returns": Case(returns, call={"args": (5,)}, covers=("args", "on_success", "after_return", "before_start")),
    "returns nothing": Case(returns, call={"kwargs": {"value": None}}, covers=("kwargs",)),
    "raises": Case(fails, covers=("on_failure",)),
    "an expected error": Case(fails, made={"throws": (ValueError,)}, covers=("throws",)),
    "retry with an error": Case(asks_again, runs=2, covers=("on_retry", "retry()", "default_retry_delay")),
    "retry without an error": Case(asks_again_without_an_error, runs=2),
    "retry, and goes on": Case(asks_and_goes_on, runs=2),
    "retry with other arguments": Case(asks_with_other_arguments, runs=3),
    "retries used up": Case(asks_until_refused, made={"max_retries": 1}, runs=2, covers=("max_retries",)),
    "autoretry_for": Case(
        fails_until_third,
        made={"autoretry_for": (ConnectionError,), "retry_backoff": False, "default_retry_delay": 0},
        runs=3,
        covers=("autoretry_for", "retry_backoff", "retry_backoff_max", "retry_jitter"),
    ),
    "autoretry_for, used up": Case(
        fails_until_third,
        made={"autoretry_for": (OSError,), "retry_kwargs": {"max_retries": 1, "countdown": 0}},
        runs=2,
        covers=("retry_kwargs",),
    ),
    "dont_autoretry_for": Case(
        fails,
        made={"autoretry_for": (Exception,), "dont_autoretry_for": (ValueError,)},
        covers=("dont_autoretry_for",),
    ),
    "Ignore": Case(ignores),
    "a state of its own, and Ignore": Case(says_and_ignores, covers=("update_state()",)),
    "Reject": Case(rejects),
    "Reject, requeued": Case(rejects_once, runs=2),
    "SystemExit": Case(exits, last="task_failure"),
    "soft time limit, caught": Case(sleeps_softly, made={"soft_time_limit": 2}, covers=("soft_time_limit",)),
    "soft time limit": Case(sleeps, call={"soft_time_limit": 2, "time_limit": 20}),
    "hard time limit": Case(
        sleeps, made={"time_limit": 3, "reruns": False}, last="task_failure", covers=("time_limit",)
    ),
    "children": Case(starts_another, covers=("trail", "add_to_parent")),
    "no trail": Case(starts_another, made={"trail": False}),
    "replace": Case(replaces_itself, runs=1, covers=("replace()", "on_replace")),
    # --- hooks that raise ---
    "before_start raises": Case(returns, hooks={"before_start": raises}),
    "on_success raises": Case(returns, hooks={"on_success": raises}),
    "on_failure raises": Case(fails, hooks={"on_failure": raises}),
    "on_retry raises": Case(asks_again, hooks={"on_retry": raises}, runs=2),
    "after_return raises": Case(returns, hooks={"after_return": raises}),
    # --- attributes ---
    "ignore_result": Case(returns, made={"ignore_result": True}, covers=("ignore_result",)),
    "ignore_result, raises": Case(fails, made={"ignore_result": True}),
    "store_errors_even_if_ignored": Case(
        fails,
        made={"ignore_result": True, "store_errors_even_if_ignored": True},
        covers=("store_errors_even_if_ignored",),
    ),
    "track_started": Case(returns, made={"track_started": True}, covers=("track_started",)),
    "send_events": Case(returns, made={"send_events": False}, covers=("send_events",)),
    "acks_late": Case(
        fails,
        made={"acks_late": True, "acks_on_failure_or_timeout": True, "reject_on_worker_lost": True},
        covers=("acks_late", "acks_on_failure_or_timeout", "reject_on_worker_lost"),
    ),
    "resultrepr_maxsize": Case(
        returns, made={"resultrepr_maxsize": 20}, call={"args": ("x" * 200,)}, covers=("resultrepr_maxsize",)
    ),
    "expires of the task": Case(shows_request, made={"expires": FEW_MINUTES}, covers=("expires",)),
    "serializer": Case(shows_request, made={"serializer": "json"}, covers=("serializer",)),
    "compression": Case(shows_request, made={"compression": "gzip"}, covers=("compression",)),
    "typing": Case(returns, made={"typing": False}, call={"args": (1, 2, 3)}, covers=("typing",)),
    # --- options of the call; what the function sees of them ---
    "no option": Case(shows_request),
    "priority": Case(shows_request, call={"priority": 7}, covers=("priority",)),
    "countdown": Case(shows_request, call={"countdown": 0.3}, covers=("countdown",)),
    "eta": Case(
        shows_request,
        call={"eta": lambda: datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=0.3)},
        covers=("eta",),
    ),
    "expires": Case(shows_request, call={"expires": FEW_MINUTES}),
    "expires, a time": Case(
        shows_request,
        call={"expires": lambda: datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=2)},
    ),
    "shadow": Case(shows_request, call={"shadow": "shown.as"}, covers=("shadow",)),
    "headers": Case(shows_request, call={"headers": {"tenant": "a", "x": {"y": [1]}}}, covers=("headers",)),
    "time limits of the call": Case(shows_request, call={"time_limit": 50, "soft_time_limit": 40}),
    "routing": Case(
        shows_request,
        call={"exchange": "", "routing_key": default_queue, "retry": True, "retry_policy": {}},
        covers=("exchange", "routing_key", "retry", "retry_policy"),
    ),
    "queue": Case(shows_request, call={"queue": default_queue}, covers=("queue",)),
    "task_id": Case(shows_request, call={"task_id": "own"}, covers=("task_id",)),
    "ignore_result of the call": Case(shows_request, call={"ignore_result": True}),
    "texts for people": Case(shows_request, call={"args": (1,), "argsrepr": "(shown,)", "kwargsrepr": "{}"}),
    "stamps": Case(shows_request, call={"stamped_headers": ["tenant"], "tenant": "a", "stamps": {"tenant": "a"}}),
    "lineage": Case(shows_request, call={"group_id": "7f1f8e22-0000-4000-8000-000000000001", "group_index": 2}),
    "link": Case(returns, call={"link": "another"}, covers=("link",)),
    "link_error": Case(fails, call={"link_error": "another"}, covers=("link_error",)),
}
