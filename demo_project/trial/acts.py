"""What is done to the shop while it works. What did not come off is tried again until it does, or the time is up.

A kill counts only if the process was inside a body: it is stopped first (SIGSTOP), then the logs outside the database
are read, and only if its last word was spoken in mid-body it is killed (SIGKILL). Otherwise it goes on unharmed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable

from django.conf import settings
from django.db import connections

from demo_project.shop.models import Order, Payment, StockMovement
from demo_project.trial import witnesses
from demo_project.trial.brokers import Broker, Victim
from demo_project.trial.processes import Fleet, is_stopped

#: Messages lost in one go, delivered twice in one go, and those that must wait in the queue before.
WIPED, COPIED = 25, 24
DEPTH = WIPED + COPIED


class TimeIsUp(Exception):
    """The run is to end; the act that was under way has not come off."""


@dataclasses.dataclass
class Tally:
    """What was done. ``harmed`` lists the jobs that only a rescue can have finished."""

    kills: int = 0
    pauses: int = 0
    wiped: int = 0
    copied: int = 0
    harmed: set[Victim] = dataclasses.field(default_factory=set)
    #: (process, order) of payments that were broken off or held up by us: they may be asked for once more meanwhile.
    disturbed: set[tuple[int, str]] = dataclasses.field(default_factory=set)


def is_done(victim: Victim) -> bool:
    """Whether the effect of a job is in the business tables."""
    if victim.task == "take_payment":
        return Payment.objects.filter(order=victim.subject).exists()
    if victim.task == "reserve_stock":
        return StockMovement.objects.filter(order=victim.subject).exists()
    if victim.task == "process_upload":
        return StockMovement.objects.filter(upload=victim.subject).exists()
    return Order.objects.filter(pk=victim.subject, receipt_sent_at__isnull=False).exists()


class Troublemaker(threading.Thread):
    """Does one act after the other, in a thread beside the one that places orders."""

    def __init__(self, fleet: Fleet, broker: Broker, upload: Callable[[], object], deadline: float) -> None:
        super().__init__(name="troublemaker", daemon=True)
        self.fleet = fleet
        self.broker = broker
        self.upload = upload
        self.deadline = deadline
        self.tally = Tally()
        self.error: BaseException | None = None
        self.act = "waiting for the workers"
        #: The act that is under way needs a queue that is not empty.
        self.waits_for_messages = False

    def stop(self) -> None:
        """End with the act that is under way."""
        self.deadline = 0.0
        self.join()

    def run(self) -> None:
        try:
            self.kill_child("take_payment")
            self.pause()
            self.kill_child("process_upload")
            self.outage()
            self.kill_worker()
            self.kill_child("take_payment")
            self.kill_child("process_upload")
            if not self.tally.pauses:
                self.pause()
            self.act = "no more trouble"
        except TimeIsUp:
            self.act = f"time was up while {self.act}"
        except Exception as error:  # told by the command, which then ends the run
            self.error = error
        finally:
            connections.close_all()

    # --- acts ---------------------------------------------------------------------------------------------------------

    def kill_child(self, task: str) -> None:
        """One process of a pool dies in mid-body."""
        self.act = f"killing a process inside {task}"
        pid, victim = self.catch(task)
        os.kill(pid, signal.SIGKILL)
        self._killed(pid, victim)

    def kill_worker(self) -> None:
        """A whole worker dies, with what it had fetched; another takes its place."""
        self.act = "killing a worker with all its processes"
        pid, victim = self.catch("take_payment")
        worker = self.fleet.worker_of(pid)
        assert worker is not None
        self.fleet.kill_worker(worker)
        self._killed(pid, victim)
        self._note_bystanders()
        self.fleet.start_worker()

    def pause(self) -> None:
        """A process stands still in mid-body until its job has been taken away and done by another; then it goes on."""
        self.act = "holding a process inside take_payment until its job is done by another"
        pid, victim = self.catch("take_payment")
        self.tally.disturbed.add((pid, victim.subject))
        self.tally.harmed.add(victim)
        try:
            give_up = time.monotonic() + 5 * settings.RELIABLE_JOBS["LEASE"]
            while not is_done(victim) and time.monotonic() < give_up:
                self._wait(0.1)
            self.tally.pauses += is_done(victim)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        # It must come to its end: killed by the next act, it would show nothing of what it may still do.
        held = witnesses.inside_bodies().get(pid)
        while held is not None and held.victim == victim and witnesses.inside_bodies().get(pid) == held:
            self._wait(0.05)

    def outage(self) -> None:
        """Every worker dies; meanwhile the broker loses messages and doubles others."""
        self.act = "killing all workers"
        pid, victim = self.catch("take_payment")
        number = len(self.fleet.workers)
        for worker in list(self.fleet.workers):
            self.fleet.kill_worker(worker)
        self._killed(pid, victim)
        self._note_bystanders()
        while self.tally.wiped < WIPED or self.tally.copied < COPIED:
            self.act = "waiting for messages to lose"
            self.waits_for_messages = True
            while self.broker.depth() < DEPTH:
                self._wait(0.05)
            self.waits_for_messages = False
            wiped = self.broker.wipe(WIPED - self.tally.wiped)
            self.tally.wiped += len(wiped)
            self.tally.harmed.update(lost for lost in wiped if not is_done(lost))
            self.tally.copied += self.broker.copy(COPIED - self.tally.copied)
        self.act = "starting the workers again"
        for _ in range(number):
            self.fleet.start_worker()

    # --- how ----------------------------------------------------------------------------------------------------------

    def catch(self, task: str) -> tuple[int, Victim]:
        """Stop a process that is inside a body of the task. It is left stopped.

        Raises:
            TimeIsUp: none could be caught before the deadline.
        """
        seen = witnesses.inside_bodies()
        next_upload = 0.0
        while True:
            if task == "process_upload" and time.monotonic() > next_upload:
                self.upload()
                next_upload = time.monotonic() + 3.0
            inside = witnesses.inside_bodies()
            fresh = [pid for pid, found in inside.items() if found.victim.task == task and seen.get(pid) != found]
            seen = inside
            for pid in reversed(fresh):
                victim = inside[pid].victim
                if victim not in self.tally.harmed and self._stop_inside(pid, victim):
                    return pid, victim
            self._wait(0.005)

    def _stop_inside(self, pid: int, victim: Victim) -> bool:
        worker = self.fleet.worker_of(pid)
        if worker is None or worker.pid == pid:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            while not is_stopped(pid):
                if self.fleet.worker_of(pid) is None:
                    return False
                self._wait(0.001)
            found = witnesses.inside_bodies().get(pid)
            if found is not None and found.victim == victim and not is_done(victim):
                return True
            os.kill(pid, signal.SIGCONT)
        return False

    def _killed(self, pid: int, victim: Victim) -> None:
        self.tally.kills += 1
        self.tally.harmed.add(victim)
        self.tally.disturbed.add((pid, victim.subject))

    def _note_bystanders(self) -> None:
        """Others that a worker's death has hit in mid-body. They are not counted as kills. Looked for afterwards: up to
        its last moment a process may begin another body."""
        for pid, found in witnesses.inside_bodies().items():
            if self.fleet.worker_of(pid) is None:
                self.tally.disturbed.add((pid, found.victim.subject))

    def _wait(self, seconds: float) -> None:
        if time.monotonic() > self.deadline:
            raise TimeIsUp
        time.sleep(seconds)
