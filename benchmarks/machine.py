"""What the processes of a run take of this machine, read from /proc. Servers that run elsewhere count as nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
#: Names of the servers' processes, as the kernel has them.
_SERVERS = {"postgres": "PostgreSQL", "beam.smp": "RabbitMQ"}
WORKERS = "workers"
#: Who is told apart.
GROUPS = (WORKERS, *_SERVERS.values())


def _processes() -> Iterator[tuple[int, str, list[str]]]:
    """Id, name, and the fields from the state on, of every process."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "stat").read_text()
        except OSError:  # it has just ended
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        yield int(entry.name), name, rest.split()


def cpu_seconds(leaders: Iterable[int]) -> dict[str, float]:
    """Seconds of processor time since the start, of each of GROUPS, children that have ended included.

    Args:
        leaders: process groups that work.
    """
    used, working = dict.fromkeys(GROUPS, 0.0), set(leaders)
    for _, name, fields in _processes():
        group = WORKERS if int(fields[2]) in working else _SERVERS.get(name)
        if group is not None:
            used[group] += sum(map(int, fields[11:15])) * _TICK
    return used


def idle_seconds() -> tuple[float, float]:
    """Seconds since the start that the processors had nothing to do, all of them added up: and of it those in which
    something waited for a disk."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    idle, waiting = int(fields[4]) * _TICK, int(fields[5]) * _TICK
    return idle + waiting, waiting


def memory(leader: int) -> dict[int, float]:
    """Resident megabytes of each process of a process group."""
    page = os.sysconf("SC_PAGE_SIZE") / 1e6
    return {process: int(fields[21]) * page for process, _, fields in _processes() if int(fields[2]) == leader}
