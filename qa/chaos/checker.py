"""The verdict. It stands outside the app: what was promised comes from the ledger, what came of it from business
tables. Job rows are asked for three things only: a final state, the attempts it cost, and evidence."""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

#: A poison job's starts: the first one, which is not counted, MAX_CRASHES that are, and one for each copy of its first
#: message that the campaign itself published.
MOST_POISON_STARTS = 6
#: RELIABLE_JOBS["MAX_CRASHES"]: so many starts of a job may be killed before it is failed.
MAX_CRASHES = 3


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that the verdict rests on.

    Args:
        records: the ledger.
        effects: (primary key, name, value) of the business rows.
        jobs: id → (task, status, reason, attempt, error).
        longest_dispatch: seconds that a request may spend on the broker.
        open_groups: ids of chords whose bodies are neither written nor given up.
    """

    records: Sequence[dict[str, Any]]
    effects: Sequence[tuple[int, str, str]]
    jobs: dict[str, tuple[str, str, str, int, str]]
    longest_dispatch: float
    open_groups: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Violation:
    promise: str
    #: "lost", "phantom", "duplicate" …
    what: str
    #: The row, job or order that shows it.
    name: str
    why: str
    job: str | None = None

    def __str__(self) -> str:
        return f"{self.promise} {self.what}: {self.name}: {self.why}" + (f" (job {self.job})" if self.job else "")


@dataclasses.dataclass
class Verdict:
    violations: list[Violation] = dataclasses.field(default_factory=list)
    #: What is worth knowing and breaks nothing.
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def count(self, what: str) -> int:
        return sum(1 for violation in self.violations if violation.what == what)


def judge(evidence: Evidence) -> Verdict:
    """Hold what was promised against what is there."""
    verdict = Verdict()
    orders = _Orders(evidence)
    verdict.violations += orders.violations
    verdict.violations += _effects(evidence, orders)
    verdict.violations += _fences(evidence)
    verdict.violations += _ends(evidence, orders)
    verdict.violations += _poison(evidence)
    verdict.violations += _requests(evidence)
    verdict.figures = _figures(evidence, orders)
    killed = _killed_to_the_limit(evidence)
    verdict.violations = [
        one for one in verdict.violations if one.job not in killed or one.what not in ("lost", "healthy failed")
    ]
    verdict.figures["jobs that were killed MAX_CRASHES times"] = len(killed)
    return verdict


def _killed_to_the_limit(evidence: Evidence) -> set[str]:
    """Jobs that are failed because the campaign has happened to kill MAX_CRASHES runs of theirs: as promised (I6).

    A run is killed when the campaign ends its process, or a poison job does that ran in it too.
    """
    running: set[tuple[int, str]] = set()
    killed: collections.Counter[str] = collections.Counter()
    for record in evidence.records:
        what, pid = record["what"], record.get("pid", 0)
        if what == "ends":
            running.discard((pid, record["job"]))
        elif what == "starts" and not _is_poison_start(record):
            running.add((pid, record["job"]))
        elif what in ("kills", "starts"):
            dead = {one for one in running if one[0] in record.get("pids", (pid,))}
            running -= dead
            killed.update(job for _, job in dead)
    return {
        job
        for job, (_, status, reason, _, _) in evidence.jobs.items()
        if (status, reason) == ("failed", "crash") and killed[job] >= MAX_CRASHES
    }


class _Orders:
    """Which orders were committed. A producer that was killed, or lost the database at its COMMIT, doesn't know: then
    the order's own row, written in the same transaction, tells."""

    def __init__(self, evidence: Evidence) -> None:
        said: dict[str, str] = {}
        intended: dict[str, list[dict[str, Any]]] = {}
        for record in evidence.records:
            if record["what"] == "intends":
                intended[record["order"]] = record["jobs"]
            elif record["what"] in ("committed", "rolled back", "unknown"):
                said[record["order"]] = record["what"]
        there = {name.partition(":")[2] for _, name, _ in evidence.effects if name.startswith("order:")}
        self.committed = {order for order in intended if order in there}
        self.rolled_back = sum(1 for what in said.values() if what == "rolled back")
        self.violations = [
            Violation("I1", "lost", f"order {order}", "committed, and its row is not there")
            for order, what in said.items()
            if what == "committed" and order not in there
        ] + [
            Violation("I1", "phantom", f"order {order}", "its row is there, and it was never committed")
            for order in sorted(there)
            if said.get(order) == "rolled back" or order not in intended
        ]
        #: Expectations of all committed jobs; the same keyed job may be wanted by several orders.
        self.expected = [job for order in sorted(self.committed) for job in intended[order]]
        wanted = {job["id"] for job in self.expected}
        self.violations += [
            Violation("I1", "phantom", f"job {job['id']}", f"order {order} was not committed", job["id"])
            for order in sorted(set(intended) - self.committed)
            for job in intended[order]
            if job["id"] in evidence.jobs and job["id"] not in wanted
        ]


def _effects(evidence: Evidence, orders: _Orders) -> Iterable[Violation]:
    counts = collections.Counter(name for _, name, _ in evidence.effects if not name.startswith("order:"))
    wanted: dict[str, tuple[int, int, str | None]] = {}
    for expectation in orders.expected:
        for name, (least, most) in expectation["effects"].items():
            wanted[name] = least, most, expectation["id"]
    for name, (least, most, job) in wanted.items():
        if counts[name] < least:
            yield Violation("I2", "lost", name, f"committed, and its effect is there {counts[name]} times", job)
        if counts[name] > most:
            yield Violation("I3", "duplicate", name, f"its effect is there {counts[name]} times", job)
    for name in sorted(set(counts) - set(wanted)):
        value = next(value for _, found, value in evidence.effects if found == name)
        # An undone run's effect, or one of a transaction that was never committed.
        yield Violation("I1", "phantom", name, "no committed transaction has asked for it", value)


def _fences(evidence: Evidence) -> Iterable[Violation]:
    """Once a later run of a job has committed, an earlier one must not."""
    latest: dict[str, int] = {}
    for _, name, value in sorted(evidence.effects):
        if name.startswith("fenced:"):
            epoch = int(value)
            if epoch < latest.get(name, -1):
                why = f"a run of epoch {epoch} committed after the one of epoch {latest[name]}"
                yield Violation("I4", "stale run", name, why)
            latest[name] = max(epoch, latest.get(name, -1))


def _ends(evidence: Evidence, orders: _Orders) -> Iterable[Violation]:
    ends = {job["id"]: job["ends"] for job in orders.expected}
    planned = {job["id"]: job["attempts"] for job in orders.expected}
    for job in set(ends) - set(evidence.jobs):
        yield Violation("I1", "lost", f"job {job}", "committed, and its row is not there", job)
    for job, (task, status, reason, attempt, error) in evidence.jobs.items():
        # Jobs that bodies enqueued are in no order; all of them are to succeed.
        expected = ends.get(job, "succeeded")
        told = f"{task} is {status} ({reason}) after {attempt} failures: {error[:300]}"
        if status in ("waiting", "running"):
            yield Violation("I2", "without a final state", f"job {job}", told, job)
        elif status != expected:
            promise, what = ("I6", "poison not failed") if expected == "failed" else ("I5", "healthy failed")
            yield Violation(promise, what, f"job {job}", told, job)
        elif status == "succeeded" and attempt > planned.get(job, 0):
            yield Violation("I5", "attempt spent", f"job {job}", told, job)
        elif status == "failed" and not (reason or error):
            yield Violation("I7", "failed without a word", f"job {job}", told, job)
    for group in evidence.open_groups:
        yield Violation("I2", "without a final state", f"chord {group}", "nobody has decided it")


def _poison(evidence: Evidence) -> Iterable[Violation]:
    starts = collections.Counter(
        record["job"] for record in evidence.records if record["what"] == "starts" and record["name"][:7] == "poison:"
    )
    for job, count in starts.items():
        if count > MOST_POISON_STARTS:
            yield Violation("I6", "loop not bounded", f"poison job {job}", f"{count} starts", job)


def _requests(evidence: Evidence) -> Iterable[Violation]:
    for record in evidence.records:
        if record["what"] == "committed" and record["dispatch"] > evidence.longest_dispatch:
            why = f"{record['dispatch']:.2f} s on the broker (at most {evidence.longest_dispatch:g})"
            yield Violation("I9", "slow request", f"order {record['order']}", why)


def _figures(evidence: Evidence, orders: _Orders) -> dict[str, Any]:
    published = [record for record in evidence.records if record["what"] == "publishes"]
    copies = collections.Counter(job for record in published for job in record["jobs"])
    carriers = [text for record in published for text in record.get("carriers", ())]
    external = collections.Counter(record["key"] for record in evidence.records if record["what"] == "external")
    fenced = collections.Counter(name for _, name, _ in evidence.effects if name.startswith("fenced:"))
    dispatches = [record["dispatch"] for record in evidence.records if record["what"] == "committed"]
    requests = [record["took"] for record in evidence.records if record["what"] == "committed"]
    poison = {record["job"] for record in evidence.records if _is_poison_start(record)}
    return {
        "orders committed": len(orders.committed),
        "orders rolled back": orders.rolled_back,
        "jobs": len(evidence.jobs),
        "poison jobs": len(poison),
        "bodies started": sum(1 for record in evidence.records if record["what"] == "starts"),
        "external effects repeated under their key": sum(external.values()) - len(external),
        "fenced effects repeated": sum(fenced.values()) - len(fenced),
        # Attempts at it: one that a dead network swallowed counts too.
        "publishes per job, mean": round(sum(copies.values()) / max(1, len(evidence.jobs)), 3),
        "publishes per job, most": max(copies.values(), default=0),
        "messages that jobs of atomic tasks shared": sum(text.endswith("shares)") for text in carriers),
        "longest request on the broker, s": max(dispatches, default=0.0),
        "longest request in all, s": max(requests, default=0.0),
        "median request in all, s": round(statistics.median(requests), 4) if requests else 0.0,
    }


def _is_poison_start(record: dict[str, Any]) -> bool:
    return bool(record["what"] == "starts" and record["name"].startswith("poison:"))
