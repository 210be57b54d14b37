"""The sentence on a job's page: where it stands, and what happens next."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from reliable_jobs.admin import story
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import EventKind, Reason, Status
from tests.admin.pages import NOW

pytestmark = pytest.mark.django_db


def _in(**delta: float) -> datetime.datetime:
    return NOW + datetime.timedelta(**delta)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"reason": "error", "failures": 2, "due_at": _in(minutes=4), "sends": 0, "error": "ValueError: no.\nmore"},
            "Waiting for attempt 3; last error: ValueError: no. Due in 4 min.",
        ),
        ({"due_at": _in(hours=3), "sends": 0}, "Scheduled: not before 2026-01-31 16:00:00, in 3 h."),
        ({"due_at": _in(seconds=-5), "sends": 0}, "Not sent yet: the sweeper publishes it at its next round."),
        ({"due_at": _in(hours=-1), "sends": 0}, "does beat or a worker run, does the broker answer, and"),
        (
            {"due_at": _in(seconds=-40), "sends": 1, "check_at": _in(seconds=-25)},
            "Published 40 s ago to queue 'letters'. Whether a worker consumes it is unknown: the broker did not say.",
        ),
        ({"due_at": _in(minutes=-9), "sends": 4}, "to queue 'letters'. It was published 4 times in all. "),
        ({"reason": "asked", "due_at": _in(days=3), "sends": 0}, "the task asked to run later. Due in 3 days."),
        ({"reason": "crash", "crashes": 2}, "2 of its starts never reported, with 3 it is given up"),
        ({"reason": "interrupted", "interruptions": 1, "error": "deadlock"}, "interrupted (1 of 10 times): deadlock"),
        (
            {"reason": "parked", "error": "unknown task 'x'", "deadline_at": _in(minutes=9), "due_at": _in(seconds=20)},
            "can run it (unknown task 'x'). Due in 20 s. It is parked as failed in 9 min, unless a worker with",
        ),
        ({"reason": "requeued"}, "Requeued by Ada. Due now."),
        (
            {
                "status": "running",
                "worker": "celery@a pid 7",
                "started_at": _in(minutes=-3),
                "lease_at": _in(seconds=5),
            },
            "Running on celery@a pid 7, attempt 1. First started 2026-01-31 12:57:00 (3 min ago). Should it die",
        ),
        ({"status": "running", "lease_at": _in(seconds=-90)}, "Its lease ended 1 min ago"),
        ({"status": "succeeded", "finished_at": NOW, "started_at": _in(seconds=-7)}, "7 s after its first start."),
        ({"status": "succeeded", "reason": "ignored"}, "Ended by its own wish"),
        (
            {"status": "failed", "reason": "error", "failures": 1, "error": "E"},
            "Failed after 1 attempt: E. Nothing more",
        ),
        (
            {"status": "failed", "reason": "crash", "crashes": 3},
            "Failed: 3 starts never reported. Requeue it when the cause is fixed.",
        ),
        ({"status": "failed", "reason": "time limit", "crashes": 3}, "killed by the hard time limit"),
        ({"status": "failed", "reason": "parked", "error": "no code"}, "Parked: no code. Requeue it once"),
        ({"status": "failed", "reason": "rejected", "error": "No"}, "the task rejected it (No)"),
        ({"status": "failed", "reason": "interrupted", "error": "11 runs"}, "Failed: interrupted. 11 runs."),
        (
            {"status": "cancelled", "error": "cancelled by Ada", "finished_at": NOW},
            "Cancelled by Ada. Ended 2026-01-31 13:00:00 (0 s ago). It does not run",
        ),
        ({"status": "cancelled", "reason": "revoked"}, "Revoked"),
        ({"status": "expired", "finished_at": NOW}, "before it could start"),
        ({"status": "failed", "finished_at": NOW}, "Kept until about 2026-05-01."),
        ({"expires_at": _in(hours=1)}, "Expires 2026-01-31 14:00:00."),
    ],
)
def test_the_sentence_says_where_the_job_stands_and_what_happens_next(columns: dict[str, Any], expected: str) -> None:
    job = Job(**{"task": "t", "queue": "letters", "due_at": NOW, "sends": 0} | columns)
    last = JobEvent(kind=EventKind.REQUEUE, actor="Ada")
    text = story.tell(job, NOW, last=last if job.reason == "requeued" else None).text
    assert expected in text


@pytest.mark.parametrize(("returned_at", "told"), [(_in(seconds=-39), True), (_in(minutes=-9), False)])
def test_a_returned_message_is_told_until_it_has_gone_out(returned_at: datetime.datetime, told: bool) -> None:
    job = Job(task="t", queue="letters", due_at=_in(hours=-1), sends=1, check_at=_in(seconds=-25))
    last = JobEvent(kind=EventKind.UNROUTABLE, at=returned_at, detail="unroutable: NO_ROUTE")
    text = story.tell(job, NOW, last=last).text
    assert ("The broker returned its message: unroutable: NO_ROUTE" in text) is told
    assert ("Published 40 s ago" in text) is not told
    assert "The sweeper looks again now." in text


def test_every_status_and_reason_has_a_sentence() -> None:
    for status in Status:
        for reason in Reason:
            text = story.tell(Job(task="t", queue="q", due_at=NOW, status=status, reason=reason), NOW).text
            assert text.endswith("."), text
            assert "None" not in text
