"""How long a job waits that nobody asked to wait: after a crash, an interruption, a conflict, a hand-back.

Pure. The delay of a ``retry()`` is the task's own: ``retry`` in task/control.py takes it. Each function that counts
takes the count that its docstring names, from 0 or from 1.
"""

from __future__ import annotations

import random

#: Seconds within which MAX_CONFLICTS is counted, at least.
CONFLICT_WINDOW = 3600.0
#: Longest pause after a conflict, in seconds.
CONFLICT_PAUSE = 30.0
#: Seconds for which a transaction of our own that meets others is tried again at once. They are short: a lock that is
#: held for longer (a forgotten session, SQLite's one writer) is waited for like a database that is away, and logged.
CONFLICTS_PASS = 1.0


def crash_delay(crashes: int) -> float:
    """Seconds before a job that killed its process runs again: 1, 2, 4 … 60, with jitter so that suspects that died
    together do not start together.

    Args:
        crashes: from 1, the one that has just happened included.
    """
    return float(min(60.0, 2.0 ** min(max(0, crashes - 1), 6)) * random.uniform(0.5, 1.5))


def interruption_delay(interruptions: int) -> float:
    """Seconds before a run that the database broke off starts again. Deadlocks want a short, uneven pause.

    Args:
        interruptions: earlier ones, from 0.
    """
    return float(min(30.0, 0.1 * 2.0 ** min(interruptions, 10)) * random.uniform(0.5, 1.5))


def conflict_delay(conflicts: int) -> float:
    """Seconds before a run that conflicted with another transaction starts again. Anywhere in a range that doubles, so
    that those which met once do not meet again.

    Args:
        conflicts: earlier ones, from 0.
    """
    return 0.02 + random.uniform(0.0, min(CONFLICT_PAUSE, 0.1 * 2.0 ** min(conflicts, 10)))


def conflict_pause() -> float:
    """Seconds before such a transaction is tried again."""
    return random.uniform(0.005, 0.05)


def conflict_window(limit: int, run: float) -> float:
    """Seconds within which ``limit`` conflicts are counted. So many runs and pauses must fit in, or a long job that
    always conflicts would never reach the limit.

    Args:
        run: seconds from when the job was due to the conflict: its wait for a worker, and the run itself.
    """
    return max(CONFLICT_WINDOW, limit * (CONFLICT_PAUSE + 2.0 * run))


def handback_delay(elapsed: float) -> float:
    """Seconds before a worker without the job's code sees it again: the longer it has been so, the rarer, from 2 to 60.

    Args:
        elapsed: seconds since it was first handed back.
    """
    return float(min(60.0, 2.0 * 2.0 ** min(int(elapsed).bit_length(), 6)) * random.uniform(0.8, 1.2))
