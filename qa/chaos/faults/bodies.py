"""Jobs that end the process which runs them, each time."""

from __future__ import annotations

import time

from qa.chaos.faults import Strike, fault
from qa.chaos.world import World

#: For a producer to order it and a worker to run it, in seconds.
PATIENCE = 40.0


def _poison(world: World, strike: Strike, way: str) -> None:
    before = world.poison_starts()
    wish = world.wish(way)
    deadline = time.monotonic() + PATIENCE
    while world.poison_starts() == before and time.monotonic() < deadline:
        time.sleep(0.02)
    strike.now(world, wish)
    strike.hit = world.poison_starts() > before


for _way, _words in (("exit", "os._exit"), ("kill", "SIGKILL"), ("segfault", "a segmentation fault")):
    fault(f"poison job: {_words}", "bodies")(lambda world, strike, way=_way: _poison(world, strike, way))
