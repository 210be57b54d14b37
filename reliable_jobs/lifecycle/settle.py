"""Recording how a run ended. A run that reports gives its crash back."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from django.db import connections

from reliable_jobs.lifecycle.sql import Moment
from reliable_jobs.lifecycle.transition import (
    ERROR_LIMIT,
    TRACEBACK_LIMIT,
    Claim,
    clean,
    record,
    transition,
)
from reliable_jobs.message.row_to_message import Rendered
from reliable_jobs.models import Job
from reliable_jobs.status import EventKind, Reason, Status


def succeed(claim: Claim, worker: str, result: str | None, reason: str = Reason.NONE) -> bool:
    """The body returned. ``result`` is JSON text, or None to store nothing."""
    return _leave(claim, Status.SUCCEEDED, worker, reason=reason, result=result, error="", traceback="")


def succeed_many(claims: Sequence[Claim], worker: str, results: Sequence[str | None]) -> bool:
    """The bodies of a bundle returned; all of them are settled, or the caller must roll back.

    Args:
        claims: first runs, locked in this transaction; at least one.
        results: as in :func:`succeed`, in the order of the claims.
    """
    if connections[claims[0].using].vendor != "postgresql":
        return all(succeed(claim, worker, text) for claim, text in zip(claims, results, strict=True))
    job_ids, epochs = [claim.job.pk for claim in claims], [claim.job.epoch for claim in claims]
    with connections[claims[0].using].cursor() as cursor:
        cursor.execute(_SUCCEED_MANY, [worker, claims[0].now, job_ids, epochs, list(results)])
        return bool(cursor.rowcount == len(claims))


#: What :func:`_leave` writes for one, for those of a bundle in one statement.
_SUCCEED_MANY = f"""
    UPDATE "{Job._meta.db_table}" AS job
    SET status = '{Status.SUCCEEDED}', reason = '{Reason.NONE}', result = done.result, error = '', traceback = '',
        worker = %s, started_at = COALESCE(job.started_at, %s), finished_at = STATEMENT_TIMESTAMP(), deadline_at = NULL,
        live_key = CASE WHEN job.key_forever THEN job.live_key END, epoch = job.epoch + 1
    FROM unnest(%s::uuid[], %s::integer[], %s::text[]) AS done (id, epoch, result)
    WHERE job.id = done.id AND job.epoch = done.epoch AND job.status = '{Status.WAITING}'
"""


def fail(claim: Claim, worker: str, reason: str, error: str, traceback: str, *, kind: str = EventKind.FAILURE) -> bool:
    """Given up. Counts the failure when it was the body's own."""
    error, traceback = clean(error, ERROR_LIMIT), clean(traceback, TRACEBACK_LIMIT)
    attempt = claim.job.attempt + (1 if kind == EventKind.FAILURE else 0)
    won = _leave(claim, Status.FAILED, worker, reason=reason, error=error, traceback=traceback, attempt=attempt)
    if won:
        record(claim.job.pk, claim.using, kind, worker, f"gave up: {error}", traceback)
    return won


def expire(claim: Claim, worker: str) -> bool:
    won = _leave(claim, Status.EXPIRED, worker, error=f"expired at {claim.job.expires_at}")
    if won:
        record(
            claim.job.pk, claim.using, EventKind.EXPIRY, worker, f"expired at {claim.job.expires_at}, before it started"
        )
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
    kind: str | None = None,
    attempt: int = 0,
    interruption: int = 0,
    content: Rendered | None = None,
    expires: datetime.datetime | None = None,
    park_at: datetime.timedelta | None = None,
) -> bool:
    """Back to waiting, to be published by the sweeper when due.

    Args:
        delay: seconds from now; ``at`` is an absolute time instead.
        attempt, interruption: 1 where this run counts as one.
        kind: the event to record, if any.
        content: new content of the job (``retry(args=…)``, ``replace()``): the rev rises.
        park_at: set, or keep, the moment after which a job without code is parked.
    """
    error, traceback = clean(error, ERROR_LIMIT), clean(traceback, TRACEBACK_LIMIT)
    job = claim.job
    changes: dict[str, Any] = {
        "sends": 0,
        "check_at": None,
        "due_at": at if at is not None else Moment(delay=delay),
        "reason": reason,
        "error": error,
        "traceback": traceback,
        "attempt": job.attempt + attempt,
        "interruptions": job.interruptions + interruption,
        "deadline_at": None if park_at is None else job.deadline_at or Moment(delay=park_at.total_seconds()),
    }
    if park_at is not None:
        changes["started_at"] = job.started_at  # nothing has started
    if expires is not None:
        changes["expires_at"] = expires
    if content is not None:
        changes.update(_content(content), rev=job.rev + 1)
    won = _leave(claim, Status.WAITING, worker, **changes)
    if won and kind is not None:
        record(job.pk, claim.using, kind, worker, error, traceback)
    return won


def _content(rendered: Rendered) -> dict[str, Any]:
    names = ("task", "queue", "priority", "body", "content_type", "content_encoding", "envelope")
    return {name: getattr(rendered, name) for name in names}


def _leave(claim: Claim, status: str, worker: str, **changes: Any) -> bool:
    """The one way out of a run. A run that reports gives its crash back."""
    job = claim.job
    if claim.token is not None:
        changes.update(crashes=job.crashes - 1, token=None, lease_at=None)
    changes.setdefault("deadline_at", None)
    changes.setdefault("started_at", job.started_at or claim.now)
    return transition(job, claim.using, status, token_now=claim.token, worker=worker, **changes)
