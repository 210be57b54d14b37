"""What must hold after every step, whatever has happened. Said in the words of the promises, not of the code."""

from __future__ import annotations

import datetime
import uuid
from typing import TYPE_CHECKING, Any

from reliable_jobs.conf import settings

if TYPE_CHECKING:
    from qa.model.records import Run
    from qa.model.world import World

FINAL = ("succeeded", "failed", "cancelled", "expired")
_UNCHANGED = ("status", "reason", "epoch", "content_version", "failures", "finished_at", "error", "worker", "token")
#: As the sweeper has them; said again, for the promise is a number too.
OVERTAKING_SLACK, FRONTIER_AGE = 5.0, 30.0


def seconds(value: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=value)


# --- in bodies --------------------------------------------------------------------------------------------------------


def body_begins(world: World, run: Run, row: dict[str, Any], content: int) -> None:
    """In the run's own thread and transaction."""
    job = run.message.job
    world.claim(
        row["content_version"] == content,
        f"I3: {job} is at content {row['content_version']}, and the body of {content} runs",
    )
    world.claim(row["status"] in ("waiting", "running"), f"I4: {job} has {row['status']}, and its body runs")
    world.claim(row["due_at"] <= world.now(), f"I2: {job} is due at {row['due_at']}, and its body runs")
    for other in world.runs:
        if other is run or other.message.job != job or not other.in_body or other.reported:
            continue
        token = other.inner.claim.token
        if token is None:
            # The lock of its row went with its session; it has not noticed yet.
            world.claim(other.disconnected, f"I4: {job} runs twice, {other} holds its row")
        else:
            world.claim(token != row["token"], f"I4: {job} runs twice by one token")
    known = world.jobs[job]
    if run.inner.claim.token is not None:
        killed, bound = known.killed[run.generation], settings.MAX_CRASHES
    else:
        # Not counted, and at most one for each message that does not tell of an earlier run.
        killed, bound = known.killed_uncounted, known.fresh
    world.claim(killed < bound, f"I6: {known} is started again after {killed} runs that were killed")


def fence_entered(world: World, run: Run, token: uuid.UUID | None) -> None:
    world.claim(run.inner.claim.token == token, f"I4: {run.message.job} was taken away, and its run goes on in a fence")


# --- after every step -------------------------------------------------------------------------------------------------


def check(world: World) -> None:
    rows, effects = world.rows(), world.effects()
    for job_id in world.unwanted:
        world.claim(uuid.UUID(job_id) not in rows, f"I1: {job_id} was rolled back and has a row")
    for job, known in world.jobs.items():
        row = rows.get(job)
        if row is None:
            world.claim(known.pruned, f"I1/I2: {known} has no row")
            continue
        _effects(world, job, known, row, effects)
        _final(world, known, row)
    for name, value in effects:
        job_id, generation = name.split("/")
        known = world.jobs.get(uuid.UUID(job_id))
        world.claim(known is not None, f"I1: an effect of the unknown job {job_id}")
        if known is not None and value == "done" and int(generation) in known.past:
            times, then = effects[name, value], known.past[int(generation)]
            world.claim(times == then, f"I3: {known}: generation {generation} had {then} effects and has {times}")
    _keys(world, rows)


def _effects(world: World, job: uuid.UUID, known: Any, row: Any, effects: dict[tuple[str, str], int]) -> None:
    name = f"{job}/{row.requeues}"
    times, pieces = effects.get((name, "done"), 0), effects.get((name, "piece"), 0)
    world.claim(pieces <= 1, f"I3: {known}: a piece happened {pieces} times")
    if known.kind == "outside":
        world.claim(row.status != "succeeded" or times >= 1, f"I3: {known} succeeded without its effect")
        return
    expected = 1 if row.status == "succeeded" else 0
    world.claim(times == expected, f"I3: {known} has {row.status}, and its effect happened {times} times")
    if known.kind == "spawns":
        children = world.children(name)
        world.claim(children == expected, f"I3: {known} has {row.status}, and it has {children} follow-up jobs")


def _final(world: World, known: Any, row: Any) -> None:
    if known.final is not None:
        changed = {n: (getattr(known.final, n), getattr(row, n)) for n in _UNCHANGED}
        changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
        world.claim(not changed, f"I4: {known} was settled, and nobody asked for it again: {changed}")
    if row.status not in FINAL:
        world.claim(row.finished_at is None, f"I7: {known}: {row.status} and finished")
        return
    known.final = row
    world.claim(
        row.finished_at is not None and row.token is None, f"I7: {known}: a settled row that is not tidy: {row}"
    )
    if row.status == "cancelled":
        world.claim(known.cancelled, f"I7: {known} is cancelled, and nobody said so")
    elif row.status == "expired":
        world.claim(
            row.expires_at is not None and row.expires_at <= row.finished_at, f"I7: {known} expired early: {row}"
        )
    elif row.status == "failed" and row.reason == "crash":
        rescues = known.rescues.get(row.requeues, 0)
        world.claim(rescues >= settings.MAX_CRASHES, f"I6: {known} is blamed for crashes after {rescues} rescues")
    elif row.status == "failed" and row.reason == "interrupted":
        world.claim(known.disconnects > settings.MAX_INTERRUPTIONS, f"I5: {known} failed by interruptions: {row.error}")
    elif row.status == "failed":
        world.claim(known.kind == "fails" and row.reason == "error", f"I2: {known} failed ({row.reason}): {row.error}")
    else:
        world.claim(known.kind != "fails", f"I3: {known} succeeded")


def _keys(world: World, rows: dict[uuid.UUID, Any]) -> None:
    held = [row.live_key for row in rows.values() if row.live_key is not None]
    world.claim(len(held) == len(set(held)), f"I1: a key has two jobs: {held}")
    for row in rows.values():
        if row.key is not None:
            world.claim((row.live_key is None) == (row.status in FINAL), f"I1: key {row.key}: {row}")


def check_end(world: World) -> None:
    """A fair world has had its time."""
    world.check()
    for row in world.rows().values():
        assert row.status in FINAL, f"I2: {world.jobs[row.id]} is never finished: {row}"


# --- a sweep ----------------------------------------------------------------------------------------------------------


class Sweep:
    """What a sweep is to do, seen before it and compared after it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.before, self.free, self.now = world.rows(), world.free(), world.now()
        self.published = len(world.broker.history)
        rows = [row for row in self.before.values() if row.id in self.free]
        waiting = [row for row in rows if row.status == "waiting"]
        self.due = {row.id for row in waiting if row.sends == 0 and row.due_at <= self.now}
        overdue = [row for row in waiting if row.sends > 0 and row.check_at <= self.now]
        self.overdue = {row.id for row in overdue if self._is_lost(row)}
        self.dead = {row.id for row in rows if row.status == "running" and row.lease_at <= self.now}

    def _is_lost(self, row: Any) -> bool:
        """Overtaken; or nothing of its queue has settled lately, so that nothing can be told."""
        frontier = [
            settled.due_at
            for settled in self.before.values()
            if settled.status in FINAL
            and settled.status != "cancelled"
            and settled.finished_at > self.now - seconds(FRONTIER_AGE)
            and settled.sends == 1
            and settled.failures == 0
        ]
        since = row.due_at if row.sends == 1 else row.check_at
        return not frontier or since < max(frontier) - seconds(OVERTAKING_SLACK)

    def check(self, mood: str) -> None:
        world, after = self.world, self.world.rows()
        sent = [published.job for published in world.broker.history[self.published :]]
        expected = set() if mood == "down" else self.due | self.overdue
        # Where the first part failed there is no second, and one window after the other ends with the first failure.
        short = mood in ("silent", "nacks")
        wrong = set(sent) - expected or (set() if short else expected - set(sent))
        world.claim(not wrong, f"I2/I8: a sweep sent {sent} where {expected} were due or lost: {wrong}")
        world.claim(len(sent) == len(set(sent)), f"I8: a sweep sent a job twice: {sent}")
        self._spacing()
        for job in self.dead:
            world.claim(after[job].status == "waiting", f"I2: {after[job]}: its run is dead, and it was not rescued")
        for job, row in self.before.items():
            taken = row.status == "running" and after[job].status == "waiting"
            world.claim(not taken or job in self.dead, f"I4: {row} was taken from a living run")
            if taken:
                rescues = world.jobs[job].rescues
                rescues[row.requeues] = rescues.get(row.requeues, 0) + 1

    def _spacing(self) -> None:
        """Each send of a waiting job doubles the time to the next one."""
        history = self.world.broker.history
        for new in history[self.published :]:
            epoch = self.before[new.job].epoch
            earlier = [
                one for one in history[: self.published] if one.job == new.job and one.epoch == epoch and one.confirmed
            ]
            if not earlier:
                continue
            last = earlier[-1]
            pause = min(settings.MAX_GRACE, settings.GRACE * 2 ** (len(earlier) - 1))
            enough = new.at - last.at >= seconds(pause)
            self.world.claim(
                enough, f"I8: {new} comes {new.at - last.at} after the {len(earlier)}th send, not {pause} s"
            )
