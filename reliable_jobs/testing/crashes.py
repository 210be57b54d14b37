"""Killing a task at each of its statements."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from django.db import NotSupportedError, connections, router

from reliable_jobs import lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.compat.django import close_connections
from reliable_jobs.compat.django_transaction import in_transaction
from reliable_jobs.models import Job
from reliable_jobs.status import FINAL, Status
from reliable_jobs.testing.copies import copied_databases
from reliable_jobs.testing.dispatch import override_dispatch
from reliable_jobs.testing.effects import difference, look
from reliable_jobs.testing.runner import as_worker, deliver, run_jobs
from reliable_jobs.testing.steps import Steps, exit_code, in_fork, read

_WRITES = ("INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE")
#: Rounds of retries and rescues after which a job that is still not final is given up.
_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class CrashStep:
    """One death, and what came of it."""

    number: int
    #: Where the process was killed: "before default: INSERT INTO …", with the database alias.
    where: str
    #: The effects after the job had been run again.
    effects: Any
    exactly_once: bool
    #: Where not: what was wrong, and the likely reason.
    trouble: str = ""

    def __str__(self) -> str:
        verdict = "exactly once" if self.exactly_once else "NOT EXACTLY ONCE"
        return f"{self.number:4}  {verdict:16}  {self.where}" + (f"\n{self.trouble}" if self.trouble else "")


@dataclasses.dataclass(frozen=True)
class CrashReport:
    """What :func:`crash_at_every_statement` found: a line for each step."""

    task: str
    #: The effects of a run that nothing disturbed.
    expected: Any
    steps: list[CrashStep]

    @property
    def failed(self) -> list[CrashStep]:
        return [step for step in self.steps if not step.exactly_once]

    def __str__(self) -> str:
        lines = [f"{self.task}: killed at {len(self.steps)} steps, {len(self.failed)} wrong"]
        said = ""
        for step in self.steps:
            again = step.trouble and step.trouble == said
            lines.append(str(dataclasses.replace(step, trouble="      as above") if again else step))
            said = step.trouble
        return "\n".join(lines)


def crash_at_every_statement(
    task: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    effects: Callable[[], Any] | Iterable[Any],
    only: Callable[[str], bool] | None = None,
    using: str | None = None,
    timeout: float = 30.0,
) -> CrashReport:
    """Kill the task's process (SIGKILL) before each of its database statements and after the last one, have the job run
    again as a redelivered message would, and assert that its effects are each time those of an undisturbed run.

    The statements are those of the whole run: claim, function, settlement, result. Each run is a forked process that
    works on a copy of the test's databases as they are now, so the test's own database keeps what it holds. Making
    the copies takes most of the time, half a second for a small database on a slow disk. Jobs that the function
    enqueues, and retries, are run too; they are not killed.

    PostgreSQL only, on a system that can fork; in a ``TransactionTestCase`` (with pytest-django: ``transactional_db``).

    Args:
        task, args, kwargs: the task, and the arguments of its ``delay()``.
        effects: what the task leaves behind: a function that returns something comparable (lists, numbers, dicts), or
            models and querysets, whose rows are compared without automatic keys and ``auto_now`` times. Sequences are
            not rolled back, clocks go on: a function must leave such values out.
        only: chooses the steps of a long task, by where they are: ``lambda where: "shop_order" in where``. A step reads
            ``before default: INSERT INTO "shop_order" …``.
        using: the database alias of the job; by default the one that jobs are written to.
        timeout: seconds for each run.

    Returns:
        The steps, for printing.

    Raises:
        AssertionError: at some step the effects differ. The message lists the steps, says what was left, and why.
        django.db.NotSupportedError: on another database than PostgreSQL, or inside a transaction.

    Example::

        crash_at_every_statement(ship, [order.pk], effects=[Parcel, Order])
    """
    alias = using or router.db_for_write(Job)
    _assert_possible(alias)
    with tempfile.TemporaryDirectory(prefix="reliable_jobs-") as directory, copied_databases():
        with override_dispatch():
            job_id = task.apply_async(tuple(args), dict(kwargs or {}), using=alias).id
        if not Job.objects.using(alias).filter(pk=job_id).exists():
            raise AssertionError(f"{task.name} wrote no job. Is CELERY_TASK_ALWAYS_EAGER on?")
        trial = _Trial(task, job_id, alias, functools.partial(look, effects), Path(directory), timeout)
        return trial.report(only or (lambda where: True))


def _assert_possible(alias: str) -> None:
    connection = connections[alias]
    if connection.vendor != "postgresql" or not hasattr(os, "fork"):
        raise NotSupportedError(
            "crash_at_every_statement() needs PostgreSQL and a system that can fork. On SQLite a copy of an in-memory "
            "database dies with its process. Run this test where DATABASES points to PostgreSQL, and skip it elsewhere."
        )
    if in_transaction(connection):
        raise NotSupportedError(
            "crash_at_every_statement() can't see into an open transaction from other processes. Use "
            "django.test.TransactionTestCase instead of TestCase; with pytest-django, transactional_db instead of db."
        )


@dataclasses.dataclass
class _Death:
    """A run that was killed, and the one that followed."""

    steps: list[str]
    left: Any
    status: str
    effects: Any = None
    #: What is wrong with the trial itself.
    broken: str = ""


@dataclasses.dataclass
class _Trial:
    """The runs of one job, each on a copy of the databases in which it waits."""

    task: Any
    job_id: str
    alias: str
    seen: Callable[[], Any]
    directory: Path
    timeout: float

    def report(self, only: Callable[[str], bool]) -> CrashReport:
        before = self.seen()
        first = self.run(0)
        if first.broken:
            raise AssertionError(f"{self.task.name}: undisturbed, {first.broken}")
        names = first.steps
        instants = [(number, name) for number, name in enumerate(names, 1) if name.startswith("before ")]
        instants.append((len(names), names[-1]))  # after one statement is before the next
        chosen = [number for number, where in instants if only(where)]
        steps = [self.judge(place, number, names, before, first.effects) for place, number in enumerate(chosen, 1)]
        if not steps:
            raise AssertionError("`only` chose none of the steps:\n" + "\n".join(where for _, where in instants))
        report = CrashReport(self.task.name, first.effects, steps)
        if report.failed:
            again = self.run(0)
            if not again.broken and again.effects != first.effects:
                raise AssertionError(
                    f"{self.task.name}: two undisturbed runs differ, so nothing can be told from the others. Leave "
                    f"times, random values and keys out of `effects`.\n{difference(first.effects, again.effects)}"
                )
            raise AssertionError(str(report))
        return report

    def judge(self, place: int, number: int, names: list[str], before: Any, expected: Any) -> CrashStep:
        death = self.run(number)
        where = death.steps[-1] if death.steps else names[number - 1]
        if death.broken:
            return CrashStep(place, where, None, False, f"      {death.broken}")
        if death.effects == expected:
            return CrashStep(place, where, death.effects, True)
        trouble = f"{difference(expected, death.effects)}\n      {self.reason(death, before, expected, names)}"
        return CrashStep(place, where, death.effects, False, trouble)

    def reason(self, death: _Death, before: Any, expected: Any, names: list[str]) -> str:
        others = {
            name.split()[1].rstrip(":")
            for name in names
            if name.startswith("before ") and name.split()[2] in _WRITES and name.split()[1] != f"{self.alias}:"
        }
        if not self.task.atomic:
            return (
                "Likely because of atomic = False: what such a function has committed stays when its process dies, and "
                "the next run does it again. Make the task atomic, or have the function find out what is done already."
            )
        if death.status in FINAL:
            return (
                "Killed after the job's transaction had been committed: what on_commit hooks, on_success and signals "
                "do then is lost with the process. Write it in the function, or enqueue a job there that does it."
            )
        if others:
            return (
                f"Likely because the function also writes to {', '.join(map(repr, sorted(others)))}, which commits "
                f"apart from the job's own database {self.alias!r}."
            )
        if death.left != before:
            return (
                "Written outside the job's transaction: it was there although that had not been committed. A "
                "connection of its own (a raw one, a thread's), a COMMIT by hand, a file, another system?\n"
                f"      left by the killed run: {death.left!r}"
            )
        return "The killed run left nothing, but the next one did other things: does it remember something elsewhere?"

    def run(self, kill_at: int) -> _Death:
        """One run on a copy; killed at a step, or at none where that is 0. Then what follows it."""
        path = self.directory / f"{kill_at}.{len(list(self.directory.iterdir()))}"
        with copied_databases():
            code = exit_code(in_fork(lambda: self._first_run(path, kill_at)), self.timeout)
            steps, killed = read(path)
            if (code, killed) != ((-9, kill_at) if kill_at else (0, 0)):
                return _Death(steps, None, "", broken=self._not_hit(code, kill_at, steps))
            death = _Death(steps, self.seen(), self._job().status)
            close_connections()
            code = exit_code(in_fork(lambda: self._next_run(redeliver=bool(kill_at))), self.timeout)
            job = self._job()
            if code != 0:
                death.broken = f"the run after it did not end in order (exit code {code}; its traceback is in stderr)"
            elif job.status != Status.SUCCEEDED:
                death.broken = f"the job ends {job.status}: {job.error}\n{job.traceback}"
            death.effects = self.seen()
            return death

    def _not_hit(self, code: int | None, kill_at: int, steps: list[str]) -> str:
        if code is None:
            return f"the run did not end within {self.timeout:g} s"
        if kill_at and code == 0:
            return f"never killed: this run had {len(steps)} steps only. Does the task do the same each time?"
        return f"the run ended its process (exit code {code}; its traceback is in stderr)"

    def _job(self) -> Job:
        return Job.objects.using(self.alias).get(pk=self.job_id)

    # --- in forked processes ------------------------------------------------------------------------------------------

    def _first_run(self, path: Path, kill_at: int) -> None:
        steps = Steps(path, kill_at)
        steps.counting = False
        steps.watch_databases()
        job = self._job()
        steps.counting = True
        with as_worker():
            deliver(job, self.alias)

    def _next_run(self, redeliver: bool) -> None:
        rows = Job.objects.using(self.alias)
        for _ in range(_ROUNDS):
            # Time passes until the lease of the dead run is over.
            rows.filter(status=Status.RUNNING).update(lease_at=Now() - datetime.timedelta(seconds=1))
            lifecycle.rescue(self.alias, 1000, actor="reliable_jobs.testing", after_restart=True)
            if redeliver:
                redeliver = False
                with as_worker():
                    deliver(self._job(), self.alias, redelivered=True)
            run_jobs(advance=datetime.timedelta(days=1), using=self.alias)
            if not rows.unfinished().exists():
                return
        raise RuntimeError(f"still unfinished: {list(rows.unfinished())}")
