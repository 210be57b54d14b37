"""Threads of the operating system, also where gevent or eventlet have put greenlets in their place.

A greenlet has its turn only when the others yield, and a task function that computes does not.

What runs in such a thread does not log, nor take another lock that greenlets take: eventlet's locks do not work between
threads, and whoever meets one waits for ever.
"""

from __future__ import annotations

import _thread
import sys
import time
from collections.abc import Callable
from typing import Any


def _gevent() -> Any:
    """gevent's monkey module, where it has patched threads."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey if monkey is not None and monkey.is_module_patched("threading") else None


def _original(name: str) -> Any:
    """A function of ``_thread`` as Python made it."""
    gevent, eventlet = _gevent(), sys.modules.get("eventlet.patcher")
    if gevent is not None:
        return gevent.get_original("_thread", name)
    return getattr(_thread if eventlet is None else eventlet.original("_thread"), name)


def _close_loop() -> None:
    """End this thread's own loop, which its first wait for the network has made and nobody else closes."""
    if _gevent() is not None:
        sys.modules["gevent"].get_hub().destroy(destroy_loop=True)
    elif "eventlet.hubs" in sys.modules:
        hub = sys.modules["eventlet.hubs"].get_hub()
        if hub.running:
            hub.abort(wait=True)


class Thread:
    """Runs a function beside the caller, whatever the caller's pool does with its greenlets.

    Args:
        target: called with ``stop``, a lock that is free once the function is to end.
    """

    def __init__(self, target: Callable[[Any], None]) -> None:
        allocate = _original("allocate_lock")
        #: Release it to stop the thread: a lock, as its method is no code of Python's that could fail half-way.
        self.stop, self._living = allocate(), allocate()
        self.stop.acquire()
        self._living.acquire()
        _original("start_new_thread")(self._run, (target,))

    def _run(self, target: Callable[[Any], None]) -> None:
        try:
            target(self.stop)
        finally:
            _close_loop()
            self._living.release()

    def join(self, timeout: float) -> None:
        """Wait for the end, letting other greenlets take their turn."""
        until = time.monotonic() + timeout
        while not self._living.acquire(timeout=0.01) and time.monotonic() < until:
            time.sleep(0.01)  # a greenlet's turn for the others; waiting for the lock alone would block all of them
