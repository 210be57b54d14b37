"""The port on which a worker shows what it has done: ``METRICS_LISTEN``."""

from __future__ import annotations

import errno
import functools
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from celery import signals

from reliable_jobs.compat.prometheus import share_from_now_on
from reliable_jobs.conf import address, settings
from reliable_jobs.telemetry import directory

logger = logging.getLogger(__name__)

#: Where the children of a prefork pool leave their numbers, by prometheus-client's own convention.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

#: Why a port can't be opened now, and perhaps can be later: another process has it still, or the address comes late.
PASSING = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
#: Seconds between two tries: at first, and at most.
PAUSES = (1.0, 30.0)

_undo: list[Callable[[], Any]] = []


def connect() -> None:
    """Have workers that start in this process open their port, where one is set."""
    signals.worker_init.connect(_count, dispatch_uid="reliable_jobs.telemetry")
    signals.worker_ready.connect(_open, dispatch_uid="reliable_jobs.telemetry")
    signals.worker_shutdown.connect(_close, dispatch_uid="reliable_jobs.telemetry")


def _count(**kwargs: Any) -> None:
    """Before the pool forks."""
    if not settings.METRICS_LISTEN:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        # Celery logs any other exception of a receiver, and goes on.
        raise SystemExit(
            "reliable_jobs: METRICS_LISTEN needs prometheus-client: pip install 'reliable-jobs[prometheus]'."
        )
    if not os.environ.get(DIRECTORY):
        directory.remove_left_behind()
        os.environ[DIRECTORY], remove = directory.make()
        _undo.append(remove)
        # Else a worker that SIGHUP starts anew, with this environment, would look for a directory that is gone.
        _undo.append(functools.partial(os.environ.pop, DIRECTORY, None))
    share_from_now_on()
    from reliable_jobs.telemetry import counters

    counters.connect()
    # Before the directory is removed: _close() undoes the last first.
    _undo.append(counters.disconnect)


def _open(**kwargs: Any) -> None:
    """After the pool has forked: its first children don't inherit the socket."""
    if not settings.METRICS_LISTEN:
        return
    try:
        _listen()
    except OSError as error:
        if error.errno not in PASSING:
            logger.error("METRICS_LISTEN: %s can't be opened (%s). Nobody sees this worker's metrics.", *_said(error))
            return
        logger.warning(
            "METRICS_LISTEN: %s can't be opened yet (%s). Perhaps another worker of this host has it: give each one a "
            "port of its own. It is tried again, at first after %g s, later every %g s.",
            *_said(error),
            *PAUSES,
        )
        stop = threading.Event()
        thread = threading.Thread(target=_keep_trying, args=(stop,), name="reliable_jobs-metrics", daemon=True)
        _undo.append(functools.partial(thread.join, 5))
        _undo.append(stop.set)
        thread.start()


def _keep_trying(stop: threading.Event) -> None:
    pause, longest = PAUSES
    while not stop.wait(pause):
        pause = min(2 * pause, longest)
        try:
            _listen()
        except OSError as error:
            if error.errno in PASSING:
                continue
            logger.error("METRICS_LISTEN: %s can't be opened (%s). It is not tried again.", *_said(error))
        return


def _listen() -> None:
    """
    Raises:
        OSError: the port can't be opened.
    """
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.metrics_core import Metric
    from prometheus_client.multiprocess import MultiProcessCollector

    from reliable_jobs.telemetry.tally import carry_over

    class UpToDate(MultiProcessCollector):
        def collect(self) -> Iterable[Metric]:
            carry_over()
            return super().collect()

    registry = CollectorRegistry()
    UpToDate(registry)
    host, port = address(settings.METRICS_LISTEN)
    server, _ = start_http_server(port, host, registry)
    _undo.append(server.server_close)
    _undo.append(server.shutdown)
    logger.info("Metrics for Prometheus: http://%s/metrics", settings.METRICS_LISTEN)


def _said(error: OSError) -> tuple[str, OSError]:
    return settings.METRICS_LISTEN, error


def _close(**kwargs: Any) -> None:
    while _undo:
        _undo.pop()()
