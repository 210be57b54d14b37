"""The thread that keeps a committed claim's lease from running out while its function runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from reliable_jobs import databases, lifecycle
from reliable_jobs.conf import settings
from reliable_jobs.logs import job_logger
from reliable_jobs.run import native
from reliable_jobs.run.state import Run

logger = job_logger(__name__)


@contextmanager
def kept_alive(run: Run) -> Iterator[None]:
    """Inside, a thread extends the lease of a committed claim."""
    beat = native.Thread(functools.partial(heartbeat, run))
    try:
        yield
    finally:
        beat.stop.release()
        beat.join(timeout=settings.LEASE)
        if run.missed_beats:
            # Here, because in the other thread a log handler's lock, as eventlet makes it, would hang the worker.
            logger.warning(
                "Job %s: its lease could not be extended %d time(s) while it ran; the last error: %r",
                run.claim.job.pk,
                run.missed_beats,
                run.last_miss,
            )


def heartbeat(run: Run, stop: Any) -> None:
    """Extend a run's lease three times in its length, until ``stop`` is released or the job is another's."""
    claim = run.claim
    try:
        while not stop.acquire(timeout=settings.LEASE / 3):
            try:
                if not lifecycle.extend_lease(claim, settings.LEASE):
                    run.lost = True
                    return
            except Exception as error:  # whatever it is: a run without a lease would be begun a second time
                run.missed_beats, run.last_miss = run.missed_beats + 1, error.with_traceback(None)
                databases.discard(claim.using)
    finally:
        connections[claim.using].close()
