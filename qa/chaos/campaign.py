"""One campaign: processes up, faults by the seed, a calm tail, the wait for what is still open, the verdict."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from qa.chaos import checker, faults, tasks
from qa.chaos.checker import Evidence, Verdict
from qa.chaos.faults import Fault, Strike
from qa.chaos.liveness import Liveness
from qa.chaos.sites import SITES, Site
from qa.chaos.world import World, job_id

#: Work goes on for so long after the last fault: a message is known to be lost when later ones overtake it.
TAIL = 8.0
#: No message must have been in the queue for so long at the end: a late copy would still do its harm.
SILENCE = 1.5
#: The end is waited for so long at most, however much still gets done, in seconds.
MOST_DRAIN = 900.0
#: A request's time on the broker that counts as a violation. PUBLISH_TIMEOUT is 0.8; the rest is a busy machine's.
LONGEST_DISPATCH = 2.5
#: Faults at the same time, at most.
AT_ONCE = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all campaigns of a call have in common.

    Args:
        seconds: how long faults go on.
        every: seconds between two faults, on average.
        jobs: the faults end when producers have committed so many.
        stall: seconds at the end without anything being finished, after which what is open counts as left behind.
        kinds: faults to choose from.
        per_second: orders that each producer begins.
    """

    seconds: float
    every: float
    jobs: int
    stall: float
    kinds: tuple[str, ...]
    per_second: float
    settings: dict[str, Any]
    directory: Path
    site: Site = SITES["plain"]


@dataclasses.dataclass
class Result:
    seed: int
    verdict: Verdict
    strikes: list[Strike]
    #: Faults that could not be carried out: the campaign's own trouble.
    errors: list[str]
    #: Where the evidence was left, if there is any.
    kept: Path | None = None

    @property
    def ok(self) -> bool:
        return not self.verdict.violations and not self.errors


class Campaign:
    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.rng = random.Random(seed)
        self.strikes: list[Strike] = []
        self.errors: list[str] = []
        self._at_it: dict[threading.Thread, Fault] = {}
        self._bag: list[Fault] = []

    def run(self) -> Result:
        began = time.monotonic()
        with World(self.seed, self.plan.site, **self.plan.settings) as world:
            self._liveness = Liveness(world)
            self._populate(world)
            ready = time.monotonic()
            try:
                self._strike_until(world, ready + self.plan.seconds)
            finally:
                self._wait_for_faults(world)
                world.heal()
            self._watch(world, TAIL)
            world.stop(world.by_role("producer"))
            drain = time.monotonic()
            self._drain(world)
            evidence = self._evidence(world)
            result = Result(self.seed, checker.judge(evidence), self.strikes, self.errors)
            result.verdict.figures |= {
                "workers that hung and were started again": len(self._liveness.hung),
                "seconds until all was up, at most": round(ready - began, 1),
                "seconds of faults and calm tail, at most": round(drain - ready, 1),
                "seconds for what was open at the end, at most": round(time.monotonic() - drain, 1),
            }
            self._measure_recoveries(world)
            if not result.ok or self._liveness.hung:
                result.kept = self._keep(world, result)
            return result

    def _populate(self, world: World) -> None:
        for name, host, pool, concurrency in self.plan.site.workers:
            world.add_worker(name, host, pool=pool, concurrency=concurrency)
        # One third of the campaigns has a relay only, one a beat only, one both.
        if self.seed % 3 != 1:
            world.add_relay()
        if self.seed % 3 != 2:
            world.add_beat()
        for member in world.by_role("worker"):
            member.process.wait_for_line(" ready.")
        world.add_producer("commits", "on_commit", self.plan.per_second)
        world.add_producer("relays", "relay", self.plan.per_second)
        deadline = time.monotonic() + 30
        while world.ledger.read().committed < 10 and time.monotonic() < deadline:
            time.sleep(0.05)

    # --- faults -------------------------------------------------------------------------------------------------------

    def _strike_until(self, world: World, end: float) -> None:
        next_at = time.monotonic()
        while time.monotonic() < end:
            self._tick(world)
            # A poison job that waits for its turn in the queue is no reason to do nothing else.
            busy = sum(1 for fault in self._at_it.values() if fault.part != "bodies")
            if time.monotonic() >= next_at and busy < AT_ONCE and (fault := self._next(world)):
                self._start(world, fault)
                next_at = time.monotonic() + self.rng.uniform(0.5, 1.5) * self.plan.every
            if world.ledger.committed >= self.plan.jobs:
                return
            time.sleep(0.05)

    def _next(self, world: World) -> Fault | None:
        """The next of a shuffled bag that breaks no part which is broken at the moment: every kind comes equally
        often."""
        if not self._bag:
            known = faults.load()
            chosen = [known[kind] for kind in sorted(self.plan.kinds)]
            self._bag = [fault for fault in chosen if fault.applies(world.site) and fault.possible(world)]
            self.rng.shuffle(self._bag)
        busy = {fault.part for fault in self._at_it.values()}
        for fault in self._bag:
            if fault.part not in busy:
                self._bag.remove(fault)
                return fault
        return None

    def _start(self, world: World, fault: Fault) -> None:
        strike = Strike(fault.kind, random.Random(self.rng.random()))
        self.strikes.append(strike)

        def act() -> None:
            try:
                fault.strike(world, strike)
            except Exception as error:
                strike.error = repr(error)
                self.errors.append(f"{fault.kind}: {error!r}")
            strike.over = time.monotonic()

        thread = threading.Thread(target=act, name=fault.kind, daemon=True)
        self._at_it[thread] = fault
        thread.start()

    def _tick(self, world: World) -> None:
        world.tick()
        self._liveness.look()
        for thread in [thread for thread in self._at_it if not thread.is_alive()]:
            del self._at_it[thread]

    def _wait_for_faults(self, world: World) -> None:
        deadline = time.monotonic() + 120
        while self._at_it and time.monotonic() < deadline:
            self._tick(world)
            time.sleep(0.05)
        self.errors += [f"{fault.kind} did not end" for fault in self._at_it.values()]

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def _watch(self, world: World, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._tick(world)
            time.sleep(0.05)

    def _drain(self, world: World) -> None:
        """Until nothing is open and the queue has been silent for a while, or nothing was finished, and no message
        taken, for too long."""
        before, queued, moved_at = -1, 0, time.monotonic()
        end = moved_at + MOST_DRAIN
        silent_since = moved_at
        while time.monotonic() < min(end, moved_at + self.plan.stall, silent_since + SILENCE):
            self._watch(world, 0.2)
            unfinished = world.unfinished(due=False)
            if unfinished is not None and len(unfinished) != before:
                before, moved_at = len(unfinished), time.monotonic()
            bodies = set().union(*(world.in_body(member) for member in world.by_role("worker")))
            to_come = world.broker.to_come()
            if to_come < queued:  # copies that are dropped are work as well, and what is open waits behind them
                moved_at = time.monotonic()
            queued = to_come
            if unfinished != [] or to_come or bodies:
                silent_since = time.monotonic()

    def _evidence(self, world: World) -> Evidence:
        effects = world.query("SELECT id, name, value FROM testapp_effect ORDER BY id")
        jobs = world.query("SELECT id, task, status, reason, failures, error FROM reliable_jobs_job")
        assert effects is not None, "the database does not answer"
        groups = world.open_groups()
        assert jobs is not None, "the database does not answer"
        assert groups is not None, "the database does not answer"
        return Evidence(
            world.ledger.read().records,
            [(row[0], row[1], row[2]) for row in effects],
            {job_id(job): (task, status, reason, attempt, error) for job, task, status, reason, attempt, error in jobs},
            LONGEST_DISPATCH,
            groups,
        )

    def _measure_recoveries(self, world: World) -> None:
        """When the last of the jobs finished that a fault had met; only these times are the app's own word."""
        rows = world.query(
            f"SELECT id, {world.database.epoch('finished_at')} FROM reliable_jobs_job "
            f"WHERE task <> '{tasks.poison.name}' AND finished_at IS NOT NULL"
        )
        finished = {job_id(job): float(at) for job, at in rows or ()}
        for strike in self.strikes:
            ends = [finished[job] for job in strike.unfinished if job in finished]
            if strike.counted and ends:
                strike.recovered = round(max(ends) - strike.clock, 2)

    def _keep(self, world: World, result: Result) -> Path:
        """What is needed to understand a violation, and to try it again."""
        place = self.plan.directory / f"{world.site.module}-seed-{self.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        place.mkdir(parents=True)
        shutil.copytree(world.directory, place / "processes", ignore=shutil.ignore_patterns("wishes"))
        for log in (world.broker.server.dir / "log", *world.database.logs()):
            shutil.copy(log, place / f"{log.parent.name}.log")
        ids = sorted({violation.job for violation in result.verdict.violations if violation.job})
        shown = {
            "seed": self.seed,
            "plan": dataclasses.asdict(self.plan),
            "violations": [dataclasses.asdict(violation) for violation in result.verdict.violations],
            "errors": self.errors,
            "hung": self._liveness.hung,
            "strikes": [strike.facts() for strike in self.strikes],
            "jobs": self._rows_of(world, "reliable_jobs_job", "id", ids),
            "events": self._rows_of(world, "reliable_jobs_jobevent", "job_id", ids),
            "ledger": [
                record
                for record in world.ledger.records
                if record.get("job") in ids or any(job in ids for job in _jobs(record))
            ],
        }
        (place / "evidence.json").write_text(json.dumps(shown, indent=1, default=str))
        return place

    @staticmethod
    def _rows_of(world: World, table: str, column: str, ids: list[str]) -> list[dict[str, Any]]:
        found = world.rows(f"SELECT * FROM {table}")
        if found is None:
            return []
        names, rows = found
        shown = [dict(zip(names, row, strict=True)) for row in rows]
        return [row for row in shown if job_id(row[column]) in ids]


def _jobs(record: dict[str, Any]) -> list[str]:
    jobs = record.get("jobs", [])
    return [job["id"] if isinstance(job, dict) else job for job in jobs]
