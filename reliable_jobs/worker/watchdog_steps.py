"""Where the watchdog hooks into a worker: one bootstep of the worker, one of its consumer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from celery import bootsteps

from reliable_jobs.compat.celery_consumer import around_each_message
from reliable_jobs.conf import settings
from reliable_jobs.run import pools
from reliable_jobs.worker.remote_control import PatientControl
from reliable_jobs.worker.watchdog import Watchdog


class WatchdogStep(bootsteps.StartStopStep):
    """Of the worker: from the pool's start until the shutdown begins."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        worker.reliable_watchdog = self.watchdog = Watchdog(worker)

    def start(self, worker: Any) -> None:
        pools.warn_of_limits(worker.app)
        # A worker of celery.contrib.testing lives in a thread of a process that is not its own to end.
        if settings.STALL_TIMEOUT and threading.current_thread() is threading.main_thread():
            self.watchdog.start()

    def close(self, worker: Any) -> None:
        self.watchdog.stop()

    def stop(self, worker: Any) -> None:
        self.watchdog.stop()

    terminate = stop


class ConsumingStep(bootsteps.StartStopStep):
    """Of the consumer: tells the watchdog when messages may come, and when they do."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        watchdog = getattr(consumer.controller, "reliable_watchdog", None)
        self.watchdog: Watchdog | None = watchdog
        if watchdog is None:
            return  # a consumer without a worker: somebody's own
        if (timeout := connect_timeout()) is not None:
            consumer.app.conf.broker_connection_timeout = timeout

        def counted(handle: Callable[[Any], Any], message: Any) -> Any:
            watchdog.count_message()
            return handle(message)

        around_each_message(consumer, counted)

    def start(self, consumer: Any) -> None:
        if self.watchdog is not None:
            self.watchdog.consuming = True

    def stop(self, consumer: Any) -> None:
        if self.watchdog is not None:
            self.watchdog.consuming = False

    shutdown = stop


_connect_timeout: float | None = None


def connect_timeout() -> float | None:
    """The project's broker_connection_timeout, as it was when the worker began."""
    return _connect_timeout


def install(app: Any) -> None:
    """Add the bootsteps to an app whose worker is about to be made."""
    global _connect_timeout
    # Under gevent Celery sets it to None, because gevent once forgot to reset timeouts. Then a connect that nobody
    # answers waits for ever.
    _connect_timeout = app.conf.broker_connection_timeout
    app.steps["worker"].add(WatchdogStep)
    app.steps["consumer"].add(ConsumingStep)
    app.steps["consumer"].add(PatientControl)
