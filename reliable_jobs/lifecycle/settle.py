"""Recording how a run ended. A run that reports gives its crash back.

A success is SQL, in sql.py; every other end is an UPDATE by ``transition`` in transition.py.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from django.db import connections

from reliable_jobs import signals
from reliable_jobs.clock import Now
from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import announce, sql
from reliable_jobs.lifecycle.db_errors import clean
from reliable_jobs.lifecycle.transition import (
    ERROR_LIMIT,
    TRACEBACK_LIMIT,
    Claim,
    check_allowed,
    record,
    transition,
)
from reliable_jobs.message.row_to_message import Rendered
from reliable_jobs.status import EventKind, Reason, Status


def succeed(
    claim: Claim, worker: str, result: str | None, reason: str = Reason.NONE, *, subtasks: str | None = None
) -> bool:
    """The task function returned.

    Args:
        result: JSON text, or None to store nothing.
        subtasks: JSON text of what the run has started; None for nothing.
    """
    job = claim.job
    values = (str(reason), result, subtasks, worker, settings.RELEASE, claim.now, claim.now, claim.hands_on, job.pk)
    if claim.token is None:
        text = sql.SUCCEED_INTERRUPTED if job.interruptions else sql.SUCCEED_FIRST_RUN
        won = sql.write(claim.using, text, *values, job.epoch) == 1
    else:
        won = sql.write(claim.using, sql.SUCCEED_BY_TOKEN, *values, claim.token) == 1
    if not won:
        check_allowed(job, Status.SUCCEEDED)  # the statements name the status that they start from
    elif signals.heard(signals.job_settled):
        announce.of_successes([claim])
    return won


def succeed_many(
    claims: Sequence[Claim], worker: str, results: Sequence[str | None], subtasks: Sequence[str | None]
) -> bool:
    """The functions of a bundle returned; all of them are settled, or the caller must roll back.

    Args:
        claims: first runs, locked in this transaction; at least one.
        results, subtasks: as in :func:`succeed`, in the order of the claims.
    """
    if connections[claims[0].using].vendor != "postgresql":
        each = zip(claims, results, subtasks, strict=True)
        return all(succeed(claim, worker, text, subtasks=started) for claim, text, started in each)
    job_ids, epochs = [claim.job.pk for claim in claims], [claim.job.epoch for claim in claims]
    values = (worker, settings.RELEASE, claims[0].now, claims[0].now, job_ids, epochs, list(results), list(subtasks))
    won = sql.write(claims[0].using, sql.SUCCEED_MANY, *values) == len(claims)
    if won and signals.heard(signals.job_settled):
        announce.of_successes(claims)
    return won


def fail(
    claim: Claim,
    worker: str,
    reason: str,
    error: str,
    traceback: str,
    *,
    kind: str = EventKind.FAILURE,
    exception: str | None = None,
    error_class: str = "",
    subtasks: str | None = None,
) -> bool:
    """Given up. Counts the failure when it was the function's own.

    Args:
        exception: as message/exception_text.py writes it.
        error_class: see :func:`db_errors.class_of`.
        subtasks: as in :func:`succeed`.
    """
    error, traceback = clean(error, ERROR_LIMIT), clean(traceback, TRACEBACK_LIMIT)
    changes: dict[str, Any] = {"failures": claim.job.failures + (1 if kind == EventKind.FAILURE else 0)}
    changes.update(exception=exception, error_class=error_class, subtasks=subtasks)
    if kind == EventKind.PARKED:
        changes.update(_never_began(claim))
    won = _leave(claim, Status.FAILED, worker, reason=reason, error=error, traceback=traceback, **changes)
    if won:
        why = f"gave up: {error}"
        record(claim.job, claim.using, kind, worker, why, traceback, run=claim, final=True, error_class=error_class)
    return won


def expire(claim: Claim, worker: str) -> bool:
    error = f"expired at {claim.job.expires_at}"
    won = _leave(claim, Status.EXPIRED, worker, error=error, **_never_began(claim))
    if won:
        record(claim.job, claim.using, EventKind.EXPIRY, worker, f"{error}, before it started", final=True)
    return won


def cancel_run(claim: Claim, worker: str, why: str) -> bool:
    """The run would have gone on later, or by other tasks; but its workflow was cancelled."""
    won = _leave(claim, Status.CANCELLED, worker, error=clean(why, ERROR_LIMIT))
    if won:
        record(claim.job, claim.using, EventKind.CANCEL, worker, why, final=True)
    return won


def run_again(
    claim: Claim,
    worker: str,
    reason: str,
    *,
    delay: float = 0.0,
    at: datetime.datetime | None = None,
    error: str = "",
    traceback: str = "",
    exception: str | None = None,
    error_class: str = "",
    kind: str | None = None,
    failure: int = 0,
    interruption: int = 0,
    content: Rendered | None = None,
    expires: datetime.datetime | None = None,
    park_at: datetime.timedelta | None = None,
    began: bool = True,
) -> bool:
    """Back to waiting, to be published by the sweeper when due.

    Args:
        delay: seconds from now; ``at`` is an absolute time instead.
        failure, interruption: 1 where this run counts as one.
        exception: of what failed, as message/exception_text.py writes it.
        error_class: of the same, see :func:`db_errors.class_of`.
        kind: the event to record, if any.
        content: new content of the job (``retry(args=…)``, ``replace()``): the content version rises.
        park_at: set, or keep, the moment after which a job without code is parked.
        began: whether the task function began; else the row's ``started_at`` stays as it was before the claim.
    """
    error, traceback = clean(error, ERROR_LIMIT), clean(traceback, TRACEBACK_LIMIT)
    job = claim.job
    changes: dict[str, Any] = {
        "sends": 0,
        "check_at": None,
        "due_at": at if at is not None else Now() + datetime.timedelta(seconds=delay),
        "reason": reason,
        "error": error,
        "traceback": traceback,
        "exception": exception,
        "error_class": error_class,
        "failures": job.failures + failure,
        "interruptions": job.interruptions + interruption,
        "deadline_at": None if park_at is None else job.deadline_at or Now() + park_at,
    }
    if not began:
        changes.update(_never_began(claim))
    if expires is not None:
        changes["expires_at"] = expires
    if content is not None:
        changes.update(_content(content), content_version=job.content_version + 1)
    won = _leave(claim, Status.WAITING, worker, **changes)
    if won and kind is not None:
        # Parked is not given up yet, and no run has ended.
        ended = None if kind == EventKind.PARKED else False
        record(job, claim.using, kind, worker, error, traceback, final=ended, error_class=error_class)
    return won


def keep_place(claim: Claim, worker: str, *, sent: bool = False) -> bool:
    """Keep the job's place: a later step of a workflow has its id, and will be written into the row (held_places.py).
    No claim and no sweep takes it meanwhile, and messages of what it was are stale.

    Args:
        sent: perhaps it won't be: the step is no reliable task, and may be started where nothing is written.
    """
    changes: dict[str, Any] = {"reason": Reason.REPLACED, "check_at": None}
    if sent:
        changes.update(relay_only=True, finished_at=Now(), check_at=Now() + datetime.timedelta(seconds=settings.GRACE))
    return _leave(
        claim,
        Status.SENT if sent else Status.WAITING,
        worker,
        sends=0,
        due_at=None,
        error="",
        traceback="",
        content_version=claim.job.content_version + 1,
        **changes,
    )


def _content(rendered: Rendered) -> dict[str, Any]:
    names = ("task", "queue", "priority", "payload", "content_type", "content_encoding", "envelope")
    return {name: getattr(rendered, name) for name in names}


def _never_began(claim: Claim) -> dict[str, Any]:
    """The starts of a job, without this claim's: its task function never began."""
    return {"started_at": None if claim.first_start else claim.job.started_at, "run_started_at": None}


def _leave(claim: Claim, status: str, worker: str, **changes: Any) -> bool:
    """Every way out of a run but success."""
    job = claim.job
    if claim.token is not None:
        changes.update(crashes=job.crashes - 1, token=None, lease_at=None)
    else:
        changes.setdefault("run_started_at", claim.now)
    changes.setdefault("deadline_at", None)
    changes.setdefault("started_at", job.started_at or claim.now)
    return transition(
        job, claim.using, status, token_now=claim.token, worker=worker, release=settings.RELEASE, **changes
    )
