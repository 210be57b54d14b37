"""The directory in which the processes of a worker keep their numbers for Prometheus, where nobody has named one.

It is held by a lock on a file in it for as long as the worker or one of its children lives, whatever ends them: so the
next worker can tell those that a kill -9 has left behind, also of another container that shares the directory for
temporary files, and removes them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

#: What the names of ours begin with; of one that is being made, before its lock is held.
PREFIX, NEW = "reliable_jobs-metrics-", "reliable_jobs-new-metrics-"
LOCK = "lock"


def make() -> tuple[str, Callable[[], None]]:
    """Make one. Returns its path, and what removes it.

    Raises:
        OSError: it could not be made.
    """
    # It gets its name once the lock is held, so that nobody takes it for one that was left behind.
    new = Path(tempfile.mkdtemp(prefix=NEW))
    lock = os.open(new / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    made = new.with_name(PREFIX + new.name.removeprefix(NEW))
    new.rename(made)

    def remove() -> None:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)

    return str(made), remove


def remove_left_behind() -> list[str]:
    """Remove those of this user whose workers are dead. Returns their paths. What can't be removed is left."""
    found = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            lock = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # none of ours, or removed meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its worker lives
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
            found.append(str(path))
        finally:
            os.close(lock)
    if found:
        logger.info("Removed the metrics of workers that were killed: %s", ", ".join(found))
    return found
