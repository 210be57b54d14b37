"""A transaction of another session."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.db import connections

from tests.support.harness.waiting import PATIENCE


class Transaction:
    """A transaction of another session (a thread with connections of its own), held open until told."""

    def __init__(self, work: Callable[[], Any]) -> None:
        from django.db import transaction

        self._go, self._did = threading.Event(), threading.Event()
        self._commit = True
        self.answer: Any = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                with transaction.atomic():
                    self.answer = work()
                    self._did.set()
                    self._go.wait(PATIENCE)
                    if not self._commit:
                        transaction.set_rollback(True)
            except BaseException as error:
                self.error = error
            finally:
                self._did.set()
                connections.close_all()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        if not self._did.wait(60):
            self._go.set()
            raise AssertionError("the other session waits for a lock")
        if self.error is not None:
            raise self.error

    def end(self, *, commit: bool = True) -> None:
        self._commit = commit
        self._go.set()
        self._thread.join(PATIENCE)
        if self.error is not None:
            raise self.error
