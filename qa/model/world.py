"""Everything that the model moves: processes, a broker, the database's clock, people; and what it knows of each job."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from celery.worker.request import create_request_cls
from django.db import transaction
from kombu.utils.imports import symbol_by_name

from qa.model import jobs, promises
from qa.model.actors import current
from qa.model.broker import Broker, Message
from qa.model.place import Place
from qa.model.records import Known, Run
from reliable_jobs import lifecycle
from reliable_jobs.conf import settings
from reliable_jobs.errors import KeyConflict
from reliable_jobs.message.row_to_message import Outgoing
from reliable_jobs.run import lease
from reliable_jobs.sweep import pruner, sweeper
from tests.celery_app import app

NODES = ("east@model", "west@model")
_COLUMNS = (
    "id, status, reason, due_at, check_at, sends, epoch, content_version, token, lease_at, failures, crashes, "
    "interruptions, requeues, key, live_key, queue, finished_at, error, worker, expires_at"
)


class _Pool:
    """Runs at once, in this thread, and lets a kill through."""

    @staticmethod
    def apply_async(
        target: Any, args: Any = (), kwargs: Any = None, *, accept_callback: Any, callback: Any, **_: Any
    ) -> None:
        accept_callback(1, 0.0)
        callback(target(*args, **(kwargs or {})))


class _OneBeat:
    """Stops a heartbeat after its first beat."""

    stopped = False

    def acquire(self, timeout: float) -> bool:
        before, self.stopped = self.stopped, True
        return before


class World:
    """One history. ``close()`` ends what still runs; rows stay until the next one begins."""

    def __init__(self, place: Place) -> None:
        self._place, self.sql, self._plain = place, place.sql, place.plain
        for table in ("reliable_jobs_jobevent", "reliable_jobs_job", "testapp_effect"):
            self.sql.execute(f"DELETE FROM {table}")
        self.sql.execute("UPDATE model_clock.clock SET at = '2040-01-01 12:00:00+00'")
        self.broker = Broker(self.now, self._epoch_of)
        self.jobs: dict[uuid.UUID, Known] = {}
        self.unwanted: set[str] = set()
        self.runs: list[Run] = []
        #: What a promise was found broken by, in whichever thread.
        self.broken: list[str] = []
        #: Nothing can be learned from it any more.
        self.over = False
        self._operator = place.actor()
        jobs.world = self

    @classmethod
    @contextlib.contextmanager
    def of(cls, place: Place) -> Iterator[World]:
        """One history, with its broker in place."""
        world = cls(place)
        try:
            with world.broker.in_place():
                yield world
        finally:
            world.close()

    def close(self) -> None:
        for run in list(self.runs):
            run.actor.kill()
        if not self._operator.dead:
            self._place.idle.append(self._operator)
        jobs.world = None

    # --- looking ------------------------------------------------------------------------------------------------------

    def now(self) -> datetime.datetime:
        return self._plain.execute("SELECT at FROM model_clock.clock").fetchone()[0]

    def rows(self) -> dict[uuid.UUID, Any]:
        return {row.id: row for row in self.sql.execute(f"SELECT {_COLUMNS} FROM reliable_jobs_job")}

    def _epoch_of(self, job: uuid.UUID) -> int:
        found = self._plain.execute("SELECT epoch FROM reliable_jobs_job WHERE id = %s", [job]).fetchone()
        return -1 if found is None else found[0]

    def _meet_follow_ups(self) -> None:
        for row in self.sql.execute("SELECT id, payload FROM reliable_jobs_job"):
            if row.id not in self.jobs:
                of = json.loads(row.payload)[1].get("of", "")
                self.jobs[row.id] = Known(len(self.jobs), "plain", of=of)

    def children(self, of: str) -> int:
        return sum(known.of == of for known in self.jobs.values())

    def effects(self) -> dict[tuple[str, str], int]:
        query = "SELECT name, value, count(*) AS times FROM testapp_effect GROUP BY name, value"
        return {(row.name, row.value): row.times for row in self.sql.execute(query)}

    def free(self) -> set[uuid.UUID]:
        """Rows that nobody has locked."""
        query = "SELECT id FROM reliable_jobs_job FOR NO KEY UPDATE SKIP LOCKED"
        return {row.id for row in self.sql.execute(query)}

    def _act(self, work: Callable[[], Any]) -> Any:
        """What a person, a producer or a sweeper does: never stopped half-way, and never waiting for a body."""
        if self._operator.dead:
            self._operator = self._place.actor()
        self.tick(0.001)
        try:
            return self._operator.run(work)
        except AssertionError:
            self.over = True
            raise

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        self._plain.execute("UPDATE model_clock.clock SET at = at + make_interval(secs => %s)", [seconds])

    # --- producers ----------------------------------------------------------------------------------------------------

    def enqueue(
        self,
        kind: str = "plain",
        *,
        mood: str = "up",
        countdown: float = 0,
        key: str | None = None,
        expires: float | None = None,
    ) -> uuid.UUID | None:
        """Returns the job's id: with a key perhaps that of a known one. None when the key was refused."""
        task = jobs.outside if kind == "outside" else jobs.atomic
        options: dict[str, Any] = {"key": key, "expires": expires}
        if countdown:
            options["countdown"] = countdown
        before = self.rows()
        holder = next((row for row in before.values() if key is not None and row.live_key == key), None)
        other = holder is not None and (holder.content_version > 0 or self.jobs[holder.id].kind != kind)

        def work() -> str:
            with transaction.atomic():
                return task.apply_async((kind,), **options).id

        with self.broker.in_mood(mood):
            try:
                job = uuid.UUID(self._act(work))
            except KeyConflict:
                self.claim(other, f"I1: key {key} was refused, and {holder} has the same content")
                return None
        self.claim(not other, f"I1: key {key} of {holder} was taken for other content")
        self.claim(
            job == holder.id if holder is not None else job not in before,
            f"I1: key {key} belongs to {holder and holder.id}, and {job} was made",
        )
        if job not in self.jobs:
            self.jobs[job] = Known(len(self.jobs), kind, key)
        return job

    def roll_back(self, kind: str = "plain", *, savepoint: bool = False) -> None:
        """A transaction that takes its job along; or a savepoint, of a transaction that commits another job."""

        def work() -> str | None:
            with transaction.atomic():
                kept = jobs.atomic.delay("plain").id if savepoint else None
                with transaction.atomic():
                    self.unwanted.add(jobs.atomic.delay(kind).id)
                    transaction.set_rollback(True)
                transaction.set_rollback(not savepoint)
            return kept

        published = len(self.broker.history)
        kept = self._act(work)
        if kept is not None:
            self.jobs[uuid.UUID(kept)] = Known(len(self.jobs), "plain")
        out = [str(one.job) for one in self.broker.history[published:]]
        self.claim(out == ([kept] if kept else []), f"I1: {kept} was committed, and {out} published")

    # --- the broker ---------------------------------------------------------------------------------------------------

    def copy(self, going: Outgoing, redelivered: bool = False) -> Message:
        """A message that was published once is there again."""
        message = Message(going.id, going, redelivered)
        self.broker.ready.append(message)
        return message

    # --- workers ------------------------------------------------------------------------------------------------------

    def deliver(self, message: Message, *, stop_at: str | None = None, node: str = NODES[0]) -> Run | None:
        """Take a ready message; returns the run that stands at the checkpoint, None when it came to its end."""
        self.broker.ready.remove(message)
        if message.job not in self.jobs:
            self._meet_follow_ups()
        actor = self._place.actor()
        run = Run(actor, message, node)
        self.runs.append(run)
        self.jobs[message.job].fresh += message.fresh
        self.tick(0.001)
        return self._step(run, lambda: actor.begin(lambda: self._receive(run), stop_at))

    def _receive(self, run: Run) -> None:
        message = run.message.as_received()
        task = app.tasks[message.headers["task"]]
        kind = self._place.requests.get((task.name, run.node))
        if kind is None:
            base = symbol_by_name(task.Request)
            kind = self._place.requests[task.name, run.node] = create_request_cls(
                base, task, _Pool, run.node, None, app=app
            )

        def ack(*args: Any) -> None:
            run.actor.passes("ack")

        def reject(logger: Any, errors: Any, requeue: bool = False) -> None:
            if requeue:
                self.broker.ready.append(dataclasses.replace(run.message, redelivered=True))

        request = kind(message, on_ack=ack, on_reject=reject, app=app, hostname=run.node, task=task)
        request.execute_using_pool(_Pool)

    def leased(self) -> list[Run]:
        """Non-atomic runs in their bodies."""
        return [run for run in self.runs if run.inner is not None and run.inner.open and not run.atomic]

    def resume(self, run: Run, stop_at: str | None = None, *, loses_answer: bool = False) -> Run | None:
        run.actor.loses_answer = loses_answer
        return self._step(run, lambda: run.actor.resume(stop_at))

    def _step(self, run: Run, step: Callable[[], None]) -> Run | None:
        try:
            step()
        except AssertionError:
            self.over = True
            self.runs.remove(run)
            raise
        if run.actor.at is not None:
            return run
        self.runs.remove(run)
        run.actor.loses_answer = False
        self._place.idle.append(run.actor)
        if run.actor.error is not None:
            self.broken.append(f"I7: a worker's loop raised {run.actor.error!r}")
        return None

    def kill(self, run: Run) -> None:
        """The worker's process: its message comes back."""
        known = self.jobs[run.message.job]
        if run.in_body and not run.reported and run.inner.claim.token is not None:
            known.killed[run.generation] += 1
        elif run.in_body and not run.reported:
            known.killed_uncounted += 1
        run.actor.kill()
        self.runs.remove(run)
        self.broker.ready.append(dataclasses.replace(run.message, redelivered=True))

    def disconnect(self, run: Run) -> None:
        run.actor.disconnect()
        run.disconnected = True
        self.jobs[run.message.job].disconnects += 1

    def beat(self, run: Run) -> None:
        """One beat of a non-atomic run's heart."""
        self._act(lambda: lease.heartbeat(run.inner, _OneBeat()))

    # --- what bodies tell ---------------------------------------------------------------------------------------------

    def in_body(self, request: Any, row: dict[str, Any], content: int) -> None:
        run = self._current_run()
        run.inner, run.generation = request.reliable_run, row["requeues"]
        promises.body_begins(self, run, row, content)
        run.in_body = True

    def in_fence(self, token: uuid.UUID | None) -> None:
        promises.fence_entered(self, self._current_run(), token)

    def _current_run(self) -> Run:
        actor = current()
        return next(run for run in self.runs if run.actor is actor)

    # --- sweepers, people ---------------------------------------------------------------------------------------------

    def sweep(self, *, mood: str = "up") -> sweeper.Report:
        expected = promises.Sweep(self)
        with self.broker.in_mood(mood):
            report = self._act(lambda: sweeper.sweep(app))
        expected.check(mood)
        return report

    def cancel(self, job: uuid.UUID) -> lifecycle.Report:
        before, free = self.rows().get(job), self.free()
        report = self._act(lambda: lifecycle.cancel([job], "default", actor="a person"))
        may = before is not None and before.status == "waiting" and job in free
        self.claim((job in report.done) == may, f"I7: a cancel of {before} said {report}")
        if job in report.done:
            self.jobs[job].cancelled = True
        return report

    def requeue(self, job: uuid.UUID) -> lifecycle.Report:
        before, free, effects = self.rows().get(job), self.free(), self.effects()
        report = self._act(lambda: lifecycle.requeue([job], "default", actor="a person"))
        may = before is not None and before.status != "running" and job in free
        if may and before.key is not None and before.live_key is None:
            may = not any(row.live_key == before.key for row in self.rows().values() if row.id != job)
        self.claim((job in report.done) == may, f"I7: a requeue of {before} said {report}")
        if job in report.done:
            known = self.jobs[job]
            known.past[before.requeues] = effects.get((f"{job}/{before.requeues}", "done"), 0)
            known.final, known.cancelled = None, False
        return report

    def prune(self) -> None:
        before, free, now = self.rows(), self.free(), self.now()
        self._act(pruner.prune)
        gone = set(before) - set(self.rows())
        for job in gone:
            row = before[job]
            old = row.finished_at is not None and row.finished_at < now - datetime.timedelta(days=1)
            self.claim(old and job in free, f"I2: pruned, and not an old settled row: {row}")
            known = self.jobs[job]
            known.pruned = True
            known.past[row.requeues] = self.effects().get((f"{job}/{row.requeues}", "done"), 0)
        orphans = self.sql.execute(
            "SELECT count(*) AS n FROM reliable_jobs_jobevent e LEFT JOIN reliable_jobs_job j ON j.id = e.job_id "
            "WHERE j.id IS NULL"
        ).fetchone()
        self.claim(orphans is not None and orphans.n == 0, "I7: events of pruned jobs are left")

    # --- promises -----------------------------------------------------------------------------------------------------

    def claim(self, true: bool, what: str) -> None:
        if not true:
            self.broken.append(what)

    def check(self) -> None:
        """Raises AssertionError where a promise is broken."""
        self._meet_follow_ups()
        promises.check(self)
        self.over = bool(self.broken)
        assert not self.broken, "\n".join(self.broken)

    def finish(self) -> None:
        """A fair world from here on, in which whoever stands still wakes up last: every job comes to its end."""
        self._drain()
        while self.runs:
            self.resume(self.runs[0])
            self.check()
        self._drain()
        promises.check_end(self)
        # What the broker still has up its sleeve changes nothing.
        for going in self.broker.ever[-10:]:
            self.deliver(self.copy(going, redelivered=True))
        promises.check_end(self)

    def _drain(self) -> None:
        """Until every job is settled or held by a run that stands still."""
        for _ in range(60):
            while self.broker.ready:
                self.deliver(self.broker.ready[0])
            self.check()
            free = self.free()
            if all(row.finished_at is not None or row.id not in free for row in self.rows().values()):
                return
            # Past every back-off and every next look, and past the time for which a settlement speaks for its queue.
            self.tick(settings.MAX_GRACE + 60)
            self.sweep()
            self.check()
