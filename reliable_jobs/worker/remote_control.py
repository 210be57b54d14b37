"""A worker works on although its remote control cannot start yet.

From Celery 5.7 on the queue of a worker's remote control is exclusive: it belongs to one connection. When the network
forgets a connection, the broker keeps it until its heartbeats are missed, minutes later or never. Until then it refuses
the queue to the worker that has come back (405 RESOURCE_LOCKED), and Celery starts the whole consumer again, each
second, without taking a job. Here the worker consumes meanwhile, and the remote control is tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.worker.consumer.control import Control
from kombu.exceptions import InconsistencyError

from reliable_jobs.compat.celery_consumer import around_remote_control

logger = logging.getLogger(__name__)

#: Seconds between two attempts to start the remote control.
AGAIN = 10.0
_LOCKED = 405


class PatientControl(bootsteps.StartStopStep):
    """Of the consumer: makes the start of Celery's Control step outlive a locked queue."""

    requires = (Control,)

    def create(self, consumer: Any) -> None:
        for step in consumer.steps:
            if isinstance(step, Control):
                around_remote_control(step, start=_patient_start, loop=_patient_loop)


def _patient_start(celerys: Callable[[Any], Any]) -> Callable[[Any], None]:
    def start(consumer: Any) -> None:
        connection = consumer.connection
        try:
            celerys(consumer)
        except (*consumer.channel_errors, InconsistencyError) as error:
            _unless_locked(error)

            def again() -> None:
                if consumer.connection is connection:  # otherwise the consumer has been started again
                    start(consumer)

            consumer.timer.call_after(AGAIN, consumer.call_soon, (again,))

    return start


def _patient_loop(loop: Callable[[Any], None]) -> Callable[[Any], None]:
    """In a greenlet, on a connection of its own: without this it ends for good."""

    def run(consumer: Any) -> None:
        connection = consumer.connection
        while consumer.connection is connection:
            try:
                return loop(consumer)
            except (*consumer.channel_errors, InconsistencyError) as error:
                _unless_locked(error)
            time.sleep(AGAIN)

    return run


def _unless_locked(error: Exception) -> None:
    if not isinstance(error, InconsistencyError) and getattr(error, "code", None) != _LOCKED:
        raise error
    logger.warning(
        "The broker still holds the remote control's queue for a connection that is gone. The worker consumes; remote "
        "control is tried again every %g s.",
        AGAIN,
    )
