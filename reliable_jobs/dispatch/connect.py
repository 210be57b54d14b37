"""A broker connection that is ready for messages in time, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from celery import Celery

from reliable_jobs.dispatch.answers import BrokerTimeout, Confirms
from reliable_jobs.dispatch.connection import Link
from reliable_jobs.message.row_to_message import Outgoing


class Preparation(threading.Thread):
    """Gets a connection ready for messages, in time or not at all.

    In a thread of its own, because nothing else bounds it: name resolution knows no timeout, and a handshake and a
    declaration are a dozen reads with one each. A network that is merely slow took four times a request's budget.

    Args:
        link: one that is connected but has not declared all of their queues; None for a new one.
    """

    def __init__(self, app: Celery, link: Link | None, messages: Sequence[Outgoing]) -> None:
        super().__init__(name="reliable_jobs-connect", daemon=True)
        self._app, self._link, self._messages = app, link, messages
        self._receipt = Confirms()
        self._error: Exception | None = None
        self._timeout = 0.0
        self._ended = threading.Event()
        self._answer = threading.Lock()
        self._given_up = False

    def result(self, timeout: float) -> tuple[Link, Confirms]:
        """The connection, and what came of the declarations.

        Raises:
            BrokerTimeout: not within ``timeout`` seconds; what is made later is let go.
            Exception: the connection's own error.
        """
        self._timeout = max(0.05, timeout)
        self.start()
        try:
            self._ended.wait(self._timeout)
        except BaseException:  # a soft time limit ends the wait
            with self._answer:
                self._given_up = True
                ended = self._ended.is_set()
            if ended and self._link is not None:
                self._link.drop()
            raise
        with self._answer:
            self._given_up = not self._ended.is_set()
        if self._given_up:
            raise BrokerTimeout("not connected in time")
        if self._error is not None:
            raise self._error
        assert self._link is not None
        return self._link, self._receipt

    def run(self) -> None:
        try:
            if self._link is None:
                self._link = Link(self._app, timeout=self._timeout)
            self._receipt = self._link.declare_for(self._messages)
        except Exception as error:  # whatever it is, the thread that waits raises it
            self._error = error
        with self._answer:
            self._ended.set()
            late = self._given_up
        if late and self._link is not None:
            self._link.drop()
