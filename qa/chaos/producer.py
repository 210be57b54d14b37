"""A web application's stand-in: orders, each a transaction with a business row and jobs; some are rolled back.

    python -m qa.chaos.producer NAME SEED PER_SECOND DIRECTORY

It ends after SIGTERM. NAME is another one at each start. Files that appear in DIRECTORY/wishes are poison jobs to be
ordered: ``WAY-NUMBER``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import django


class _RollBack(Exception):
    pass


class Producer:
    def __init__(self, name: str, seed: int, per_second: float, directory: Path) -> None:
        self.name = name
        self.rng = random.Random(f"{seed} {name}")
        self.pause = 1.0 / per_second
        self.directory = directory
        self.stopped = False

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        number = 0
        while not self.stopped:
            due = time.monotonic() + self.rng.uniform(0.5, 1.5) * self.pause
            self._order(f"{self.name}.{number}")
            number += 1
            time.sleep(max(0.0, due - time.monotonic()))

    def _stop(self, *_: Any) -> None:
        self.stopped = True

    def _order(self, order: str) -> None:
        """One transaction."""
        from django.db import connections, transaction

        from qa.chaos import ledger, work
        from tests.testapp.models import Effect

        wish = self._wish()
        times: dict[str, float] = {}
        ledger.note("opens", order=order)
        times["began"] = time.monotonic()
        try:
            with transaction.atomic():
                Effect.objects.create(name=f"order:{order}")
                # The first hook of all: what comes after it, to the end of the block, is the broker's.
                transaction.on_commit(lambda: times.update(committed=time.monotonic()))
                jobs = work.some(self.rng, order)
                if wish is not None:
                    jobs += work.poisonous(order, wish)
                time.sleep(self.rng.uniform(0.0, 0.05))
                ledger.note("intends", order=order, jobs=jobs, poison=wish)
                if wish is None and self.rng.random() < 0.15:
                    raise _RollBack
            ended = time.monotonic()
        except _RollBack:
            ledger.note("rolled back", order=order)
            return
        except Exception as error:
            ledger.note("unknown", order=order, error=repr(error))
            connections.close_all()
            time.sleep(0.2)
            return
        ledger.note(
            "committed",
            order=order,
            took=round(ended - times["began"], 4),
            dispatch=round(ended - times["committed"], 4),
        )

    def _wish(self) -> str | None:
        for path in sorted((self.directory / "wishes").glob("*")):
            try:
                os.rename(path, self.directory / f"taken-{path.name}")  # only one producer can win
            except FileNotFoundError:
                continue
            return path.name.partition("-")[0]
        return None


if __name__ == "__main__":
    django.setup()
    Producer(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])).run()
