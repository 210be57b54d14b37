"""Work in threads that have database connections of their own and close them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Aside(threading.Thread):
    """A thread that has begun to do some work."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        from django.db import connections

        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error
        finally:
            connections.close_all()

    def value(self, seconds: float = 30) -> Any:
        """What the work has returned.

        Raises:
            AssertionError: it is not over within the seconds.
            BaseException: what it has raised.
        """
        self.join(seconds)
        assert not self.is_alive(), "the other thread waits"
        if self._error is not None:
            raise self._error
        return self._value


def elsewhere(work: Callable[[], Any]) -> Any:
    """Do it in another thread, and give what that returns."""
    return Aside(work).value()
