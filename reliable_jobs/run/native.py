"""Threads of the operating system, also where gevent or eventlet have put greenlets in their place.

A greenlet has its turn only when the others yield, and a task function that computes does not.
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


class Event:
    """What ``threading.Event`` is, between a greenlet and a native thread; waited for by one thread."""

    def __init__(self) -> None:
        self._unset = _original("allocate_lock")()
        self._unset.acquire()

    def set(self) -> None:
        """Once."""
        self._unset.release()

    def wait(self, timeout: float) -> bool:
        """Whether it was set within the time. Stops the whole process where the caller is a greenlet."""
        if not self._unset.acquire(timeout=timeout):
            return False
        self._unset.release()
        return True


class Thread:
    """Runs a function beside the caller, whatever the caller's pool does with its greenlets."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        self._ended = Event()
        _original("start_new_thread")(self._run, (target, args))

    def _run(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            target(*args)
        finally:
            _close_loop()
            self._ended.set()

    def join(self, timeout: float) -> None:
        """Wait for the end, letting other greenlets take their turn."""
        until = time.monotonic() + timeout
        while not self._ended.wait(0.01) and time.monotonic() < until:
            time.sleep(0.01)
