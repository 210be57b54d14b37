"""Recovery, one fault each, with the default settings: ``python -m qa.chaos.recovery [SCENARIO …]``.

Each scenario has private servers, says what it measured and the bound that it holds it against. Exit code 1: over a
bound. What is asked for in the end takes longer than the defaults: ``--fresh 200 --waiting 50000 --minutes 10``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qa.chaos.world import World


@dataclasses.dataclass(frozen=True)
class Measure:
    what: str
    value: float
    bound: float
    unit: str = "s"

    @property
    def ok(self) -> bool:
        return self.value <= self.bound

    def __str__(self) -> str:
        word = "" if self.ok else "   OVER ITS BOUND"
        return f"{self.what:78}{self.value:10.3f} {self.unit:4} (at most {self.bound:g}){word}"


Scenario = Callable[[argparse.Namespace], Iterator[Measure]]


@contextlib.contextmanager
def world(**settings: float) -> Iterator[World]:
    """A world with the app's default settings, whose jobs this process enqueues."""
    from qa.chaos import ledger
    from qa.chaos.servers import QUEUE
    from qa.chaos.world import World
    from reliable_jobs.conf import Settings
    from tests.support.harness import Stack

    defaults = Settings()
    names = ("GRACE", "LEASE", "WORKER_SWEEP_INTERVAL", "PUBLISH_TIMEOUT")
    with World(0, **{**{name: getattr(defaults, name) for name in names}, **settings}) as made:
        stack = Stack(made.database.server.url, made.broker.server.url, **made.settings)
        stack.database_url, stack.queue = made.database.url, QUEUE
        os.environ[ledger.VARIABLE] = str(made.ledger.path)
        try:
            with stack.active():
                yield made
        finally:
            del os.environ[ledger.VARIABLE]


def arguments(argv: list[str] | None, names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m qa.chaos.recovery", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs that are open when the broker is wiped")
    parser.add_argument("--fresh", type=int, default=20, help="fresh processes for each broken broker")
    parser.add_argument("--waiting", type=int, default=3000, help="jobs that wait behind slow workers")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long the workers take for them")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args(argv)
    if unknown := set(options.scenarios) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def main(argv: list[str] | None = None) -> int:
    os.environ["DJANGO_SETTINGS_MODULE"] = "qa.chaos.sites.plain"
    import django

    django.setup()
    from qa.chaos import scenarios
    from qa.chaos.__main__ import take_down_at_sigterm

    known: dict[str, Scenario] = scenarios.SCENARIOS
    options = arguments(argv, list(known))
    take_down_at_sigterm()
    measures: list[Measure] = []
    for name in options.scenarios or known:
        for measure in known[name](options):
            measures.append(measure)
            print(measure, flush=True)
    if options.json:
        options.json.write_text(json.dumps([{**dataclasses.asdict(one), "ok": one.ok} for one in measures], indent=1))
    return 0 if all(measure.ok for measure in measures) else 1


if __name__ == "__main__":
    sys.exit(main())
