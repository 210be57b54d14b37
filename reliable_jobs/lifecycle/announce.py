"""Signals of what this folder writes, each sent after the commit of the transaction that writes it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from reliable_jobs import signals
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind, Status

_ENDED_BY = {EventKind.CANCEL: Status.CANCELLED, EventKind.EXPIRY: Status.EXPIRED}


class _Run(Protocol):
    """What is asked of a claim."""

    job: Job
    using: str
    began: float


def of_successes(claims: Sequence[_Run]) -> None:
    """These runs have succeeded."""
    signals.send_after_commit(signals.job_settled, claims[0].using, [_success(claim) for claim in claims])


def _success(claim: _Run) -> dict[str, Any]:
    return {
        **signals.about(claim.job),
        "status": str(Status.SUCCEEDED),
        "kind": "",
        "detail": "",
        "error_class": "",
        "attempt": claim.job.failures + 1,
        "seconds": time.monotonic() - claim.began,
    }


def of_events(events: Iterable[JobEvent], using: str, run: _Run | None = None) -> None:
    """These events were written.

    Args:
        run: that ended with them.
    """
    attempt = None if run is None else run.job.failures + 1
    seconds = None if run is None else time.monotonic() - run.began
    for event in events:
        said = {"job_id": event.job_id, "task": event.task, "queue": event.queue, "detail": event.detail}
        if event.kind == EventKind.RESCUE:
            signals.send_after_commit(signals.job_rescued, using, [{**said, "seen": event.final is None}])
        if event.kind == EventKind.PARKED:
            signals.send_after_commit(signals.job_parked, using, [{**said, "final": bool(event.final)}])
        if event.final:
            said |= {"status": str(_ENDED_BY.get(EventKind(event.kind), Status.FAILED)), "kind": str(event.kind)}
            said |= {"error_class": event.error_class, "attempt": attempt, "seconds": seconds}
            signals.send_after_commit(signals.job_settled, using, [said])


def of_lost_answer(claims: Sequence[_Run]) -> None:
    """These runs were settled, but their COMMIT was answered with an error: no hook that waited for it was run."""
    if not signals.heard(signals.job_settled):
        return
    for claim in claims:
        status = Job.objects.using(claim.using).filter(pk=claim.job.pk).values_list("status", flat=True).first()
        if status == Status.SUCCEEDED:
            signals.send(signals.job_settled, claim.using, [_success(claim)])
        elif status is not None:
            events = JobEvent.objects.using(claim.using).filter(job_id=claim.job.pk, final=True).order_by("-pk")[:1]
            of_events(events, claim.using, claim)
