"""Celery: a worker's consumer, and what may be put around what it does with messages and with remote control.

What belongs to a worker alone is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reliable_jobs.compat.celery import CELERY
from reliable_jobs.compat.kombu import KOMBU


@CELERY.undocumented(
    "Consumer.on_unknown_task",
    at="celery.worker.consumer.consumer:Consumer.on_unknown_task",
    takes=("body", "message", "exc"),
    tests=["test_promise_7_no_silent_discard"],
)
@CELERY.undocumented(
    "Consumer.on_unknown_message",
    at="celery.worker.consumer.consumer:Consumer.on_unknown_message",
    takes=("body", "message"),
    tests=["test_promise_7_no_silent_discard"],
)
@CELERY.undocumented(
    "Consumer.on_invalid_task",
    at="celery.worker.consumer.consumer:Consumer.on_invalid_task",
    takes=("body", "message", "exc"),
    tests=["test_promise_7_no_silent_discard"],
)
@CELERY.undocumented(
    "Consumer.on_decode_error",
    at="celery.worker.consumer.consumer:Consumer.on_decode_error",
    takes=("message", "exc"),
    tests=["test_promise_7_no_silent_discard"],
)
def before_rejecting(consumer: Any, around: Callable[[str, Any, Any, Callable[[], Any]], Any]) -> None:
    """Be asked first about each message that a consumer would log and drop.

    Args:
        around: called with what is wrong with the message (``unknown task``, ``unknown message``, ``invalid task``,
            ``decode error``), the message, the error, and Celery's own answer, to be called or not.
    """
    for name in ("on_unknown_task", "on_unknown_message", "on_invalid_task", "on_decode_error"):
        setattr(consumer, name, _asked_first(name, getattr(consumer, name), around))


def _asked_first(name: str, celerys: Callable[..., Any], around: Callable[..., Any]) -> Callable[..., Any]:
    def handler(*args: Any) -> Any:
        message = args[0] if name == "on_decode_error" else args[1]
        error = args[-1] if name != "on_unknown_message" else "not a task message"
        return around(name.removeprefix("on_").replace("_", " "), message, error, lambda: celerys(*args))

    return handler


@CELERY.undocumented(
    "Consumer.on_invalid_task",
    at="celery.worker.consumer.consumer:Consumer.on_invalid_task",
    takes=("body", "message", "exc"),
    tests=["test_bad_messages"],
)
def reject_invalid(consumer: Any, message: Any, error: Exception) -> Any:
    """Answer a message as one that the worker can't read, by way of :func:`before_rejecting`."""
    return consumer.on_invalid_task(None, message, error)


@CELERY.undocumented(
    "Consumer.create_task_handler",
    at="celery.worker.consumer.consumer:Consumer.create_task_handler",
    tests=["test_bad_messages", "test_watchdog"],
)
def around_each_message(consumer: Any, around: Callable[[Callable[[Any], Any], Any], Any]) -> None:
    """Stand around the consumer's handler of messages, which Celery makes anew at each start of the consumer.

    Args:
        around: called with Celery's handler and the message.
    """
    create = consumer.create_task_handler

    def create_task_handler(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        handle = create(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            return around(handle, message)

        return on_task_received

    consumer.create_task_handler = create_task_handler


@CELERY.undocumented(
    "Consumer.task_consumer",
    inside="celery.worker.consumer.tasks:Tasks.__init__",
    tests=["test_watchdog", "test_processes"],
)
def task_consumer_of(consumer: Any) -> Any:
    """What takes messages for a worker's consumer; None before it does."""
    return consumer.task_consumer


@KOMBU.undocumented("Consumer._active_tags", inside="kombu.messaging:Consumer.__init__", tests=["test_processes"])
def consumed_queues(consumer: Any) -> list[str]:
    """The names of the queues that a consumer takes messages from."""
    task_consumer = task_consumer_of(consumer)
    return [] if task_consumer is None else sorted(task_consumer._active_tags.copy())


@KOMBU.undocumented(
    "limits.TokenBucket.contents",
    inside="kombu.utils.limits:TokenBucket.__init__",
    tests=["test_watchdog"],
)
@CELERY.undocumented(
    "Consumer.qos_global",
    inside="celery.worker.consumer.consumer:Consumer.__init__",
    since="5.7",
    tests=["test_watchdog"],
)
@CELERY.undocumented(
    "state.scheduled_requests",
    at="celery.worker.state:scheduled_requests",
    since="5.7",
    tests=["test_watchdog"],
)
def messages_held(consumer: Any) -> int:
    """How many messages a consumer has taken from the broker that are not done: more may come while it is below the
    pool's places.

    With rate limits some wait in buckets. Messages from elsewhere that wait for their ETA count where they take part of
    the window of a prefetch count that can't grow (quorum queues, Celery 5.7).
    """
    from celery.worker import state

    held = len(state.reserved_requests)
    held += sum(len(bucket.contents) for bucket in list(consumer.task_buckets.values()) if bucket)
    if getattr(consumer, "qos_global", None) is False:
        held += len(getattr(state, "scheduled_requests", ()))
    return held


@CELERY.undocumented(
    "Control.box",
    inside="celery.worker.consumer.control:Control.__init__",
    tests=["test_consuming"],
)
@CELERY.undocumented(
    "Control.is_green",
    inside="celery.worker.consumer.control:Control.__init__",
    tests=["test_consuming"],
)
@CELERY.undocumented("Pidbox.start", at="celery.worker.pidbox:Pidbox.start", takes=("c",), tests=["test_consuming"])
@CELERY.undocumented("gPidbox.loop", at="celery.worker.pidbox:gPidbox.loop", takes=("c",), tests=["test_consuming"])
def around_remote_control(step: Any, *, start: Callable[..., Any], loop: Callable[..., Any]) -> None:
    """Stand around the start of a consumer's ``Control`` step, or in a greenlet pool around its loop.

    Args:
        start, loop: each makes a function of the consumer from Celery's own.
    """
    if step.is_green:
        step.box.loop = loop(step.box.loop)
    else:
        step.start = start(step.box.start)
