"""A process is killed at each of its steps in turn; then the system recovers, and the business tables are looked at.

The undisturbed run names the steps. Each step has a job and a queue of its own, so that all the dead of a scenario can
be recovered together, as after a power cut.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import queue as queues
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from django.db.models import F
from django.db.models.functions import Now

from reliable_jobs.lifecycle import seconds
from reliable_jobs.models import Job
from reliable_jobs.testing.steps import read
from tests.harness import ROOT, Process, Stack, wait_until
from tests.warm import RECEIVED

#: Processes that live, and are killed, at the same time.
AT_ONCE = 2


class Warm(Process):
    """``python -m tests.warm``: does one order at a time."""

    def start(self) -> None:
        with self._path.open("ab") as output:
            self.popen = subprocess.Popen(
                self._argv,
                env=self._env,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )

    def kill9(self) -> None:
        super().kill9()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()

    def order(self, **order: Any) -> Any:
        """Exit code of the child (None where it did not end in time), or its pid with ``wait=False``."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(f"{json.dumps(order)}\n".encode())
        self.popen.stdin.flush()
        answer = self.popen.stdout.readline()
        assert answer, f"{self.name} ended:\n{self.log[-4000:]}"
        return json.loads(answer)


class WarmProcesses:
    """What the scenarios of a module share. A thread takes one for itself."""

    def __init__(self, stack: Stack) -> None:
        self._idle: queues.Queue[Warm] = queues.Queue()
        for number in range(AT_ONCE):
            argv = [sys.executable, "-m", "tests.warm"]
            process = Warm(f"warm{number}", argv, stack.environment(), stack.directory)
            stack.processes.append(process)
            self._idle.put(process)

    @contextlib.contextmanager
    def one(self) -> Iterator[Warm]:
        process = self._idle.get()
        try:
            yield process
        finally:
            self._idle.put(process)


@dataclasses.dataclass
class Cut:
    """One step of a scenario. The undisturbed run has the number 0."""

    number: int
    #: The steps until there; all of them for the undisturbed run.
    reached: list[str]
    #: Of the job's effects. Its queue is called alike.
    name: str

    def __str__(self) -> str:
        return f"killed at step {self.number}, {self.reached[-1]}" if self.number else "undisturbed"

    def passed(self, what: str) -> int:
        """How many steps "after …" that contain this were reached."""
        return sum(step.startswith("after ") and what in step for step in self.reached)


class Scenario:
    """The steps of one process that does one thing.

    Args:
        role: of the process; see tests/warm.py.
        prepare: makes what the process is to find, given the name of the step, which is that of its queue too.
        apart: the process would see the jobs of other steps: their clocks stand still meanwhile.
        order: what else the process is told.
    """

    def __init__(
        self,
        stack: Stack,
        warm: WarmProcesses,
        role: str,
        prepare: Callable[[str], Any] = lambda name: None,
        *,
        apart: bool = False,
        **order: Any,
    ) -> None:
        self.stack, self.warm, self.role, self.prepare, self.apart, self.order = (
            stack,
            warm,
            role,
            prepare,
            apart,
            order,
        )
        self.title = "_".join([role, *map(str, order.values())])
        self.prefix = f"{self.title}_{uuid.uuid4().hex[:6]}"
        self.undisturbed = Cut(0, [], f"{self.prefix}_0")
        self.cuts = [self.undisturbed]

    def run(self, which: Callable[[str], bool] = lambda step: True) -> list[Cut]:
        """Once undisturbed, and then a death at each step that ``which`` chooses. Returns all of them, not recovered.

        Raises:
            AssertionError: a process was not killed where it was to be.
        """
        self._make_ready([self.undisturbed])
        self._die(self.undisturbed)
        steps = self.undisturbed.reached
        assert steps, "nothing was seen"
        dead = [
            Cut(number, steps[:number], f"{self.prefix}_{number}")
            for number, step in enumerate(steps, 1)
            if which(step)
        ]
        self.cuts += dead
        if self.apart:
            self._set_clock(self.undisturbed, +1)
            for cut in dead:
                self._make_ready([cut])
                self._die(cut)
                self._set_clock(cut, +1)
            for cut in self.cuts:
                self._set_clock(cut, -1)
        else:
            self._make_ready(dead)
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as executor:
                list(executor.map(self._die, dead))
        print(f"{self.title}: {len(steps)} steps, killed at {len(dead)} of them")
        return self.cuts

    def _make_ready(self, cuts: list[Cut]) -> None:
        with self.stack._channel() as channel:
            for cut in cuts:
                self.stack.queues.append(cut.name)
                channel.queue_declare(cut.name, durable=True, auto_delete=False)
        for cut in cuts:
            self.prepare(cut.name)

    def _die(self, cut: Cut) -> None:
        log = self.stack.directory / f"{cut.name}.steps"
        with self.warm.one() as process:
            order = {**self.order, "role": self.role, "name": cut.name, "queues": [cut.name], "log": str(log)}
            code = process.order(**order, kill_at=cut.number)
            said = process.log[-4000:]
        reached, killed = read(log)
        if not cut.number:
            assert code == 0, f"the undisturbed run ended with {code} after {reached}\n{said}"
            cut.reached = reached
            return
        assert (code, killed) == (-9, cut.number), f"{cut} was not hit: ended with {code} after {reached}"
        assert reached == cut.reached, f"{cut}: another way than the undisturbed run: {reached}"

    def _set_clock(self, cut: Cut, hours: int) -> None:
        later = seconds(3600 * hours)
        rows = Job.objects.unfinished().filter(queue=cut.name)
        rows.update(due_at=F("due_at") + later, check_at=F("check_at") + later, lease_at=F("lease_at") + later)

    def recover(self) -> None:
        """A sweeper and another worker, until nothing is left to do."""
        names = [cut.name for cut in self.cuts]
        log = self.stack.directory / f"{self.prefix}.recovery"
        # A redelivered message would wait for the end of its lease, and the others behind it.
        running = Job.objects.filter(status="running", lease_at__gt=Now())
        wait_until(lambda: not running.exists(), "the leases of the dead are over")

        def nothing_left() -> bool:
            self.stack.sweep()
            return not Job.objects.unfinished().exists()

        def all_acknowledged() -> bool:
            with self.stack._channel() as channel:
                ready = sum(channel.queue_declare(name, passive=True).message_count for name in names)
            steps, _ = read(log)
            return not ready and steps.count(RECEIVED) == steps.count("after broker: basic_ack")

        with self.warm.one() as process:
            queues = [self.stack.queue, *names]
            pid = process.order(role="recovery", name="recovery", queues=queues, log=str(log), wait=False)
            try:
                wait_until(nothing_left, "no job is unfinished", every=0.2)
                wait_until(all_acknowledged, "no message is left")
            finally:
                process.order(end=pid)
        assert not Job.objects.exclude(token=None, lease_at=None).exists()
