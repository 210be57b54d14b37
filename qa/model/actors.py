"""Threads that stand for processes, moved on one at a time.

An actor runs until it comes to a checkpoint at which it was told to stop, or to its end; meanwhile nobody else moves.
So a model with many of them is as deterministic as one without threads. A killed actor keeps its thread for as long as
it takes to unwind, but no database, no broker and no acknowledgement: what its code does on the way out reaches nobody,
as with a SIGKILL.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import psycopg
from django.db import OperationalError, connections
from django.db.backends.postgresql.base import DatabaseWrapper

from reliable_jobs.run import delivery, recovery
from tests.support.harness import wait_until

#: A step takes milliseconds. One that takes this long waits for something; what for, the database is asked.
SUSPICIOUS, HOPELESS = 0.3, 20.0

#: In the order in which a run comes by them. One that is told to stop at a checkpoint that is not on its way stops at
#: the next one behind it.
CHECKPOINTS = ("claimed", "body", "fenced", "late", "settled", "committed", "ack")

_local = threading.local()

#: A transition, and the status if it is written out.
_STATUS = re.compile(r'UPDATE "reliable_jobs_job" SET "status" = (?:\'(\w+)\'|%s)')


class Killed(BaseException):
    """Unwinds the thread of an actor that is no more."""


class Waits(AssertionError):
    """A step waits for a lock that a stopped actor holds: nothing may wait for a body."""


def current() -> Actor | None:
    """The actor whose thread this is."""
    return getattr(_local, "actor", None)


class Actor:
    """One process: a thread with a database connection of its own."""

    def __init__(self, name: str, sql: psycopg.Connection) -> None:
        self.name, self._sql = name, sql
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._work: Callable[[], Any] | None = None
        self._stop_at: str | None = None
        #: The checkpoint at which it stands; None when it has nothing to do.
        self.at: str | None = None
        self.dead = False
        self.answer: Any = None
        self.error: BaseException | None = None
        #: The process id of its database session.
        self.session: int | None = None
        #: Its next COMMIT is carried out, and the answer lost with the connection.
        self.loses_answer = False
        #: Whether its transaction has written a status, and which.
        self.wrote: str | None = None
        self._thread = threading.Thread(target=self._live, name=f"model-{name}", daemon=True)
        self._thread.start()

    # --- what the model does ------------------------------------------------------------------------------------------

    def begin(self, work: Callable[[], Any], stop_at: str | None = None) -> None:
        """Do this, as far as the checkpoint. Raises Waits, and nothing that the work raised: see ``error``."""
        assert self.at is None, f"{self.name} stands at {self.at}"
        assert not self.dead
        self._work, self.answer, self.error = work, None, None
        self.resume(stop_at)

    def resume(self, stop_at: str | None = None) -> None:
        self._stop_at, self.at = stop_at, None
        self._go.release()
        if self._stopped.acquire(timeout=SUSPICIOUS):
            return
        for _ in range(int(HOPELESS / SUSPICIOUS)):
            if self.session is not None and (standing := self._waits_for()):
                self.kill()
                raise Waits(f"{self.name} waits for a session that waits to be moved on: {standing}")
            if self._stopped.acquire(timeout=SUSPICIOUS):
                return
        raise AssertionError(f"{self.name} has not come to a checkpoint in {HOPELESS} s")

    def run(self, work: Callable[[], Any]) -> Any:
        """Do this without a stop and return its answer, or raise its error."""
        self.begin(work)
        if self.error is not None:
            raise self.error
        return self.answer

    def _waits_for(self) -> list[tuple[Any, ...]]:
        """What the sessions that hold it up have said last, as far as they stand still. One that is at work, such as a
        lease's thread that has no turn on a busy machine, lets go by itself."""
        return self._sql.execute(
            "SELECT pid, state, left(query, 200) FROM pg_stat_activity"
            " WHERE pid = ANY (pg_blocking_pids(%s)) AND state LIKE 'idle in transaction%%'",
            [self.session],
        ).fetchall()

    def disconnect(self) -> None:
        """End its database session; it finds out when it next asks for something."""
        if self.session is None:
            return
        self._sql.execute("SELECT pg_terminate_backend(%s)", [self.session])
        # Its locks go before its line in the view does. (The function's own waiting looks every 100 ms.)
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_get_activity(%s))"
        wait_until(lambda: self._sql.execute(gone, [self.session]).fetchone()[0], "the session ends", every=0.001)
        self.session = None

    def kill(self) -> None:
        """SIGKILL: the database rolls back what was open, and the thread unwinds."""
        self.dead = True
        self.disconnect()
        self.at = None
        self._go.release()
        self._thread.join(HOPELESS)
        assert not self._thread.is_alive(), f"{self.name} does not end"

    def leave(self) -> None:
        """End an actor that has nothing to do."""
        assert self.at is None
        self._work = None
        self._go.release()
        self._thread.join(HOPELESS)

    # --- in its thread ------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        _local.actor = self
        try:
            while not self.dead:
                self._go.acquire()
                if self.dead or self._work is None:
                    return
                try:
                    self.answer = self._work()
                except Killed:
                    return
                except BaseException as error:
                    self.error = error
                self._work, self.at = None, None
                self._look()
                self._stopped.release()
        finally:
            connections.close_all()
            self._stopped.release()

    def _look(self) -> None:
        raw = connections["default"].connection
        self.session = None if raw is None or raw.closed else raw.info.backend_pid

    def passes(self, checkpoint: str) -> None:
        """Called in its thread: stop here, if so told."""
        if self.dead:
            raise Killed
        if self._stop_at is None or CHECKPOINTS.index(checkpoint) < CHECKPOINTS.index(self._stop_at):
            return
        self._look()
        self.at = checkpoint
        self._stopped.release()
        self._go.acquire()
        if self.dead:
            raise Killed


def passes(checkpoint: str) -> None:
    actor = current()
    if actor is not None:
        actor.passes(checkpoint)


class _Time:
    """For the modules that wait: a clock that nobody waits for."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        actor = current()
        if actor is not None and actor.dead:
            raise Killed


@contextlib.contextmanager
def instrumented() -> Iterator[None]:
    """Checkpoints in the code under test: ``claimed`` (a claim is committed), ``settled`` (a settlement is written and
    not committed), ``committed``. The others are passed by bodies and brokers."""
    real_commit, real_connect = DatabaseWrapper._commit, DatabaseWrapper.get_new_connection

    def watch(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        answer = execute(sql, params, many, context)
        actor = current()
        written = _STATUS.match(str(sql))
        if actor is not None and written is not None:
            actor.wrote = written[1] or str(params[0])
        return answer

    def connect(self: DatabaseWrapper, parameters: Any) -> Any:
        actor = current()
        if actor is not None:
            if actor.dead:
                raise Killed
            if watch not in self.execute_wrappers:
                self.execute_wrappers.append(watch)
            actor.wrote = None
        raw = real_connect(self, parameters)
        if actor is not None:
            actor.session = raw.info.backend_pid
        return raw

    def commit(self: DatabaseWrapper) -> None:
        actor = current()
        if actor is None or self.connection is None:
            return real_commit(self)
        wrote, actor.wrote = actor.wrote, None
        if wrote is not None and wrote != "running":
            actor.passes("settled")
        real_commit(self)
        if wrote is not None and actor.loses_answer:
            actor.loses_answer = False
            self.connection.close()
            raise OperationalError("server closed the connection unexpectedly")
        if wrote is not None:
            actor.passes("claimed" if wrote == "running" else "committed")
        return None

    time = _Time()
    with (
        mock.patch.object(DatabaseWrapper, "_commit", commit),
        mock.patch.object(DatabaseWrapper, "get_new_connection", connect),
        mock.patch.object(delivery, "time", time),
        mock.patch.object(recovery, "time", time),
        # Two more looks at a row that is locked: nobody moves meanwhile.
        mock.patch.object(delivery, "REDELIVERY_PATIENCE", 0.15),
        # Held over a commit at which an actor may stand; actors are processes, and it is one of one process.
        mock.patch("reliable_jobs.lifecycle.claims._one_claim_at_a_time", contextlib.nullcontext()),
    ):
        yield
