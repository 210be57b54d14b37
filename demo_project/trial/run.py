"""One run: orders with trouble beside them, then a wait for what is still open, then the count."""

from __future__ import annotations

import time

from django.core.management.base import CommandError

from demo_project.trial import brokers, evidence, report
from demo_project.trial.acts import Tally, Troublemaker
from demo_project.trial.customers import Customers
from demo_project.trial.processes import Fleet

WORKERS = 2
#: Seconds within which the orders are to be placed, if the machine is fast enough.
SPREAD = 30.0
#: No order comes while so many are open: a slow machine gets fewer in a second, and no heap that it can't work off. An
#: act that waits for messages gets them all the same.
MOST_OPEN = 60
#: Orders go on for so long after the last trouble: what overtakes a lost message shows that it is lost.
QUIET_TAIL = 8.0
#: How long nothing may get done before the run is broken off. The sweeper needs up to half a minute for a message that
#: was lost when nothing came after it.
STALL = 45.0
#: How long the queue must have been empty at the end: a late copy would still do its harm.
SILENCE = 2.0
#: What of the time must be left for the waiting when the orders and the trouble end.
RESERVE = 30.0


class Run:
    """A run that has been started; :meth:`play` takes it to its end."""

    def __init__(self, orders: int, deadline: float, progress: report.Progress) -> None:
        self.orders = orders
        self.deadline = deadline
        self.progress = progress
        self.customers = Customers()
        #: Uploads that were seen half done at any time.
        self.half_done: set[str] = set()
        #: The time was up while work was still getting done.
        self.cut_short = False

    def play(self) -> tuple[Tally, evidence.Verdict]:
        """Do it all, end every process, and count.

        Raises:
            CommandError: a process ended that nobody had killed, or the demo itself failed.
        """
        self.broker = brokers.broker()
        try:
            with Fleet() as self.fleet:
                self.fleet.start_beat()
                for _ in range(WORKERS):
                    self.fleet.start_worker()
                trouble = Troublemaker(self.fleet, self.broker, self.customers.upload, self.deadline - RESERVE)
                trouble.start()
                try:
                    self._place_orders(trouble)
                finally:
                    trouble.stop()
                self._wait_for_open(trouble.tally)
                self._wait_for_copies()
        finally:
            self.progress.end()
            self.broker.close()
        verdict = evidence.verdict(trouble.tally)
        verdict.duplicates += sorted(self.half_done)
        verdict.cut_short = self.cut_short
        return trouble.tally, verdict

    def _place_orders(self, trouble: Troublemaker) -> None:
        quiet_since: float | None = None
        left = 0
        while time.monotonic() < self.deadline - RESERVE:
            if trouble.error is not None:
                raise CommandError(f"The demo itself failed while {trouble.act}: {trouble.error!r}") from trouble.error
            if not trouble.is_alive():
                quiet_since = quiet_since or time.monotonic()
                if self.customers.committed >= self.orders and time.monotonic() > quiet_since + QUIET_TAIL:
                    return
            if left < MOST_OPEN or trouble.waits_for_messages:
                self.customers.order()
                if self.customers.placed % 60 == 1:
                    self.customers.upload()
            if left >= MOST_OPEN or self.customers.placed % 10 == 0:
                left = self._look(trouble.tally, trouble.act)
            time.sleep(SPREAD / max(1, self.orders))

    def _look(self, tally: Tally, act: str) -> int:
        for process in self.fleet.dead():
            raise CommandError(f"{process.name} ended by itself:\n{process.last_words()}")
        self.half_done.update(evidence.half_done_uploads())
        left = evidence.unfinished()
        self.progress.show(self.customers.committed, self.orders, left, tally, act)
        return left

    def _wait_for_open(self, tally: Tally) -> None:
        before, moved_at = -1, time.monotonic()
        while self._look(tally, "waiting for what is still open"):
            if (effects := evidence.effects()) != before:
                before, moved_at = effects, time.monotonic()
            if time.monotonic() > min(self.deadline, moved_at + STALL):
                self.cut_short = time.monotonic() < moved_at + STALL
                return
            time.sleep(0.2)

    def _wait_for_copies(self) -> None:
        quiet_since = time.monotonic()
        while time.monotonic() < min(self.deadline, quiet_since + SILENCE):
            if self.broker.depth():
                quiet_since = time.monotonic()
            time.sleep(0.1)
