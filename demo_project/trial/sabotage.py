"""``--break fence|lock|sweep``: one protection of reliable_jobs switched off, in the processes that the demo starts.

The library has no hook for this: its functions are replaced from outside, as a test would do it.
"""

from __future__ import annotations

import inspect
import os
import uuid
from typing import Any

from django.db.models import F
from django.utils import timezone

VARIABLE = "DEMO_BREAK"
CHOICES = ("fence", "lock", "sweep")


def apply() -> None:
    """Break what the environment names; nothing by default."""
    broken = os.environ.get(VARIABLE)
    if broken:
        {"fence": _without_fence, "lock": _without_lock, "sweep": _without_sweep}[broken]()


def _without_fence() -> None:
    """A run that has lost its job is not told so: it commits, and settles, all the same."""
    from reliable_jobs import lifecycle
    from reliable_jobs.clock import Now
    from reliable_jobs.lifecycle import Claim, settle
    from reliable_jobs.models import Job
    from reliable_jobs.status import FINAL, Reason, Status

    def transition(job: Job, using: str, status: str, *, token_now: uuid.UUID | None = None, **changes: Any) -> bool:
        if status in FINAL:
            changes["finished_at"] = Now()
        rows = Job.objects.using(using).filter(pk=job.pk)
        return rows.update(status=status, epoch=F("epoch") + 1, **changes) == 1

    def succeed(
        claim: Claim, worker: str, result: str | None, reason: str = Reason.NONE, *, subtasks: str | None = None
    ) -> bool:
        given_back = {} if claim.token is None else {"crashes": claim.job.crashes - 1, "token": None, "lease_at": None}
        changes = {"reason": reason, "result": result, "subtasks": subtasks, "worker": worker, **given_back}
        return transition(claim.job, claim.using, Status.SUCCEEDED, **changes)

    _replace(settle, "transition", transition)
    _replace(lifecycle, "succeed", succeed)
    _replace(lifecycle, "lock_by_token", lambda claim: True)
    _replace(lifecycle, "extend_lease", lambda claim, lease: True)


def _without_lock() -> None:
    """A claim doesn't keep others out: rows are read without a lock, and a second run shares the first one's claim."""
    from reliable_jobs import lifecycle
    from reliable_jobs.models import Job, JobQuerySet

    claim_committed = lifecycle.claim_committed

    def share(job_id: uuid.UUID, content_version: int, using: str, **options: Any) -> Any:
        claim = claim_committed(job_id, content_version, using, **options)
        if claim is lifecycle.Refusal.LOCKED:
            job = Job.objects.using(using).find(job_id)
            if job is not None and job.token is not None:
                return lifecycle.Claim(job, using, timezone.now(), job.token)
        return claim

    _replace(JobQuerySet, "lock", lambda self, **options: self)
    _replace(lifecycle, "claim_committed", share)


def _without_sweep() -> None:
    """Nobody looks after what was published and not settled, what is due, or what died."""
    from reliable_jobs.sweep import sweeper

    _replace(sweeper, "sweep", lambda app, actor="", report=None, on_backlog=None: sweeper.Report())


def _replace(owner: Any, name: str, replacement: Any) -> None:
    """Raises AttributeError or TypeError where the library has changed and this file has not. A replacement that its
    callers can't call would fail every job, which is no picture of a missing protection."""
    there, here = (inspect.signature(one).parameters.values() for one in (getattr(owner, name), replacement))
    taken = {parameter.name for parameter in here}
    missing = [parameter.name for parameter in there if parameter.name not in taken]
    if missing and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in here):
        raise TypeError(f"the replacement of {name}() lacks {', '.join(missing)}")
    setattr(owner, name, replacement)
