"""Runs a command while its processes are stopped and continued at random: finds the tests that time can break.

.venv/bin/python tools/stall.py [--seed N] [--share 0.2] -- .venv/bin/python -m pytest -n 2 -m "not servers" ...

A busy machine takes a processor away from a process for a second, at any line. Here that happens hundreds of times in
a run, so that a test which is red once in a hundred quiet runs is red in one of these.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

#: Seconds that a process stays stopped: mostly a part of a second, seldom more, as on a machine with too much to do.
SHORTEST, MEAN, LONGEST = 0.02, 0.25, 1.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="which stalls")
    parser.add_argument("--share", type=float, default=0.2, help="part of the time in which one process is stopped")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    chance, stops = random.Random(options.seed), 0
    with subprocess.Popen(options.command) as process:
        while process.poll() is None:
            seconds = min(LONGEST, SHORTEST + chance.expovariate(1 / MEAN))
            if chosen := below(process.pid):
                stops += stop(chance.choice(chosen), seconds)
            time.sleep(seconds * (1 - options.share) / options.share)
    print(f"stalls: {stops}, seed {options.seed}", flush=True)
    return process.returncode


def below(pid: int) -> list[int]:
    """The running processes that a process has started, and those that they have started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has ended meanwhile
        if state not in "TZ":  # a test has stopped it, or it is dead
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def stop(pid: int, seconds: float) -> bool:
    """Stop one process for some seconds. Returns whether it was there."""
    try:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
