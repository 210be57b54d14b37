"""A process is killed at each of its steps in turn; then the system recovers, and the business tables are looked at.

The undisturbed run names the steps. Each step has a job and a queue of its own, so that all the dead of a scenario can
be recovered together, as after a power cut.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import datetime
import itertools
import json
import queue as queues
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django.db.models import F
from django.test import override_settings

from qa.crashes.warm import LAST, RECEIVED
from reliable_jobs.clock import Now
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.testing.steps import read
from tests.support.harness import PATIENCE, Process, Stack, wait_until

#: Processes that live, and are killed, at the same time.
AT_ONCE = 2


class Warm(Process):
    """``python -m qa.crashes.warm``: does one order at a time."""

    forked = False

    def streams(self, output: Any) -> dict[str, Any]:
        return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": output}

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
            argv = [sys.executable, "-m", "qa.crashes.warm"]
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
        role: of the process; see qa/crashes/warm.py.
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

    def run(self, which: Callable[[str], bool] = lambda step: True, *, share: int = 1) -> list[Cut]:
        """Once undisturbed, and then a death at each step that ``which`` chooses. Returns all of them, not recovered.

        Args:
            share: of those steps; of eight every eighth only, beginning with one by chance.

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
        ][random.randrange(share) :: share]
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
        assert reached == cut.reached, f"{cut}: another way than the undisturbed run: {_difference(cut, reached)}"

    def _set_clock(self, cut: Cut, hours: int) -> None:
        later = datetime.timedelta(seconds=3600 * hours)
        rows = Job.objects.unfinished().filter(queue=cut.name)
        rows.update(due_at=F("due_at") + later, check_at=F("check_at") + later, lease_at=F("lease_at") + later)

    def recover(self) -> None:
        """A sweeper and another worker, until nothing is left to do."""
        # A redelivered message would wait for the end of its lease, and the others behind it.
        running = Job.objects.filter(status="running", lease_at__gt=Now())
        wait_until(lambda: not running.exists(), "the leases of the dead are over")
        queues = [self.stack.queue, *(cut.name for cut in self.cuts)]
        # Nothing is lost any more: a message that has been sent again needs no further copy at once.
        calm = override_settings(RELIABLE_JOBS={**self.stack.settings, "GRACE": 3.0})
        with calm, at_work(self.stack, self.warm, "recovery", queues):
            # One worker does what all of the dead have left.
            seconds = PATIENCE + len(self.cuts)
            wait_until(lambda: self.stack.sweep() and nothing_left(), "no job is unfinished", seconds, every=0.2)
        assert not Job.objects.exclude(token=None, lease_at=None).exists()


def _difference(cut: Cut, reached: list[str]) -> str:
    """The first step that is another one, with those before it."""
    pairs = list(itertools.zip_longest(cut.reached, reached))
    place = next(place for place, (expected, found) in enumerate(pairs) if expected != found)
    return f"after {reached[max(0, place - 6) : place]}, {pairs[place][1]} instead of {pairs[place][0]}"


def nothing_left() -> bool:
    return not (Job.objects.unfinished().exists() or JobGroup.objects.filter(state="open").exists())


@contextlib.contextmanager
def at_work(stack: Stack, warm: WarmProcesses, role: str, queues: list[str], **order: Any) -> Iterator[Path]:
    """A worker of these queues lives during the block, and acknowledges all that it was given by its end."""
    log = stack.directory / f"{role}_{uuid.uuid4().hex[:6]}.log"

    def all_acknowledged() -> bool:
        with stack._channel() as channel:
            ready = sum(channel.queue_declare(name, passive=True).message_count for name in queues)
        steps, _ = read(log)
        answers = steps.count("after broker: basic_ack") + steps.count("after broker: basic_reject")
        return not ready and steps.count(RECEIVED) == answers

    with warm.one() as process:
        pid = process.order(**order, role=role, name=role, queues=queues, log=str(log), wait=False)
        try:
            yield log
            wait_until(all_acknowledged, "no message is left")
        finally:
            process.order(end=pid)


def prefork_children(
    stack: Stack, warm: WarmProcesses, enqueue: Callable[[str], Any], which: Callable[[str], bool]
) -> list[Cut]:
    """Children of a worker's pool die, each at another step of its first job, and the worker lives: no sweep, no other
    worker. Returns what has recovered already."""
    prefix = f"child_{uuid.uuid4().hex[:6]}"

    def file(number: int) -> Path:
        return stack.directory / f"{prefix}_{number}.steps"

    with at_work(stack, warm, "prefork", [stack.queue], children=1):
        enqueue(f"{prefix}_0")
        wait_until(lambda: file(0).exists() and LAST in file(0).read_text(), "the undisturbed job is done")
    steps, _ = read(file(0))
    numbers = [number for number, step in enumerate(steps, 1) if which(step)]
    cuts = [Cut(number, steps[:number], f"{prefix}_{number}") for number in [0, *numbers]]
    # A child for each, so that each opens its connections anew as the undisturbed one did.
    with at_work(stack, warm, "prefork", [stack.queue], children=len(numbers)):
        for cut in cuts[1:]:
            enqueue(cut.name)
        wait_until(nothing_left, "no job is unfinished", every=0.2)
    for cut in cuts[1:]:
        assert read(file(cut.number)) == (cut.reached, cut.number), f"{cut} was not hit"
    print(f"prefork: {len(steps)} steps, killed at {len(numbers)} of them")
    return cuts


def all_of(cuts: list[Cut], expected: Callable[[Cut], Any], seen: Callable[[Cut], Any]) -> None:
    """Every cut shows what is expected of it; says of all that do not where they were killed."""
    compared = [(cut, expected(cut), seen(cut)) for cut in cuts]
    wrong = [f"{cut}: {found}, not {wanted}" for cut, wanted, found in compared if found != wanted]
    assert not wrong, "\n".join(wrong)
