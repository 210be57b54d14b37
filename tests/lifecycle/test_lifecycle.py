"""Every transition is one conditional UPDATE that says whether it won: claims, fences, settlements."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.lifecycle import Claim, Refusal, db_errors
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import FINAL, TRANSITIONS, Reason, Status
from tests.lifecycle.made import claim, claim_atomic, claim_committed, make
from tests.support.rows import future, now, past

pytestmark = pytest.mark.promise("I4")

ENDINGS: dict[str, Callable[[Claim], bool]] = {
    "succeed": lambda claim: lifecycle.succeed(claim, "w", '"value"'),
    "fail": lambda claim: lifecycle.fail(claim, "w", Reason.ERROR, "no", "trace"),
    "expire": lambda claim: lifecycle.expire(claim, "w"),
    "run_again": lambda claim: lifecycle.run_again(claim, "w", Reason.ASKED, delay=5),
}

# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("take", [claim_atomic, claim_committed])
@pytest.mark.parametrize(
    ("job", "refusal"),
    [
        (lambda: make(due_at=future()), Refusal.NOT_DUE),
        (lambda: make(content_version=1), Refusal.STALE),
        # It has replaced itself; a worker must not wait for it to become free.
        (lambda: make(Status.SENT, content_version=1), Refusal.STALE),
        (lambda: make(Status.RUNNING, content_version=1), Refusal.STALE),
        (lambda: make(Status.RUNNING), Refusal.LOCKED),
        (lambda: make(Status.RUNNING, lease_at=past()), Refusal.LOCKED),
        *((lambda status=status: make(status), Refusal.FINAL) for status in FINAL),
        (lambda: Job(), Refusal.MISSING),
    ],
    ids=["not due", "stale", "stale, sent", "stale, running", "running", "running, lease over", *FINAL, "missing"],
)
def test_a_claim_that_is_refused_says_why_and_changes_nothing(take: Any, job: Any, refusal: Refusal) -> None:
    row = job()
    assert take(row.pk) is refusal
    if refusal is not Refusal.MISSING:
        assert now(row).epoch == row.epoch


@pytest.mark.django_db
def test_an_atomic_claim_shows_nothing_and_a_suspect_commits_its_claim() -> None:
    row = make()
    got = claim_atomic(row.pk)
    assert isinstance(got, Claim)
    assert got.token is None
    assert (now(row).status, now(row).epoch) == (Status.WAITING, 0)
    assert claim_atomic(make(crashes=1).pk) is Refusal.SUSPECT


@pytest.mark.django_db
def test_a_committed_claim_counts_its_start_and_has_token_and_lease() -> None:
    row = make()
    got = claim_committed(row.pk, deadline=100)
    assert isinstance(got, Claim)
    after = now(row)
    assert (after.status, after.crashes, after.epoch, after.token) == (Status.RUNNING, 1, 1, got.token)
    assert 5 < (after.lease_at - timezone.now()).total_seconds() <= 11
    assert 90 < (after.deadline_at - timezone.now()).total_seconds() <= 101
    assert claim_committed(row.pk) is Refusal.LOCKED


@pytest.mark.django_db
def test_suspects_run_one_at_a_time_on_a_worker_and_side_by_side_on_two() -> None:
    make(Status.RUNNING, crashes=2, worker="one@h pid 5 #x")
    suspect = make(crashes=1)
    assert claim_committed(suspect.pk, worker="one@h pid 6 #y") is Refusal.ALONE
    assert isinstance(claim_committed(suspect.pk, worker="two@h pid 6 #y"), Claim)


@pytest.mark.django_db
def test_a_worker_whose_name_begins_like_anothers_is_another() -> None:
    make(Status.RUNNING, crashes=2, worker="one@host2 pid 5 #x")
    assert isinstance(claim_committed(make(crashes=1).pk, worker="one@host pid 6 #y"), Claim)


@pytest.mark.django_db
def test_a_dead_suspect_does_not_keep_the_others_waiting() -> None:
    make(Status.RUNNING, crashes=2, worker="one@h pid 5 #x", lease_at=past())
    assert isinstance(claim_committed(make(crashes=1).pk, worker="one@h pid 6 #y"), Claim)


@pytest.mark.django_db
def test_a_suspect_that_steps_back_is_due_later_and_unsent() -> None:
    row = make(crashes=1, sends=1, check_at=future())
    assert lifecycle.step_back(row.pk, "default", 5)
    after = now(row)
    assert (after.sends, after.check_at, after.epoch) == (0, None, 1)
    assert after.due_at > timezone.now()
    assert not lifecycle.step_back(make("failed").pk, "default", 5)


@pytest.mark.django_db
def test_the_first_start_is_kept_through_later_ones() -> None:
    first = past(500)
    got = claim_committed(make(started_at=first).pk)
    assert isinstance(got, Claim)
    assert now(got.job).started_at == first
    assert 490 < got.age < 600


@pytest.mark.django_db
@pytest.mark.parametrize("committed", [False, True], ids=["first run", "committed claim"])
@pytest.mark.parametrize("earlier", [None, past(500)], ids=["never started", "started before"])
@pytest.mark.parametrize("ending", ["expire", "park", "hand back", "give back"])
def test_a_function_that_never_began_leaves_no_start(
    committed: bool, earlier: datetime.datetime | None, ending: str
) -> None:
    row = make(started_at=earlier)
    with transaction.atomic():
        got = claim_committed(row.pk) if committed else lifecycle.claim_atomic(row.pk, 0, "default")
        assert isinstance(got, Claim)
        grace = datetime.timedelta(seconds=60)
        endings: dict[str, Callable[[], bool]] = {
            "expire": lambda: lifecycle.expire(got, "w"),
            "park": lambda: lifecycle.fail(got, "w", Reason.PARKED, "no", "", kind="parked"),
            "hand back": lambda: lifecycle.run_again(got, "w", Reason.PARKED, park_at=grace, began=False),
            "give back": lambda: lifecycle.run_again(got, "w", Reason.INTERRUPTED, began=False),
        }
        assert endings[ending]()
    assert now(row).started_at == earlier


# --- the fence --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("status", [Status.WAITING, Status.RUNNING])
def test_an_ending_wins_once(ending: str, status: str) -> None:
    mine = claim(make(status))
    assert ENDINGS[ending](mine)
    after = now(mine.job)
    assert (after.epoch, after.worker, after.token, after.lease_at) == (1, "w", None, None)
    for other in ENDINGS.values():
        assert not other(mine)
    assert now(mine.job).epoch == 1
    assert now(mine.job).status == after.status


@pytest.mark.django_db
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_wrong_epoch_loses_and_leaves_no_trace(ending: str) -> None:
    job = make()
    mine = claim(job)
    Job.objects.update(epoch=5)
    assert not ENDINGS[ending](mine)
    assert (now(job).status, now(job).epoch, now(job).worker) == (Status.WAITING, 5, "")
    assert not JobEvent.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_wrong_token_loses_and_leaves_no_trace(ending: str) -> None:
    job = make(Status.RUNNING)
    mine = claim(job)
    Job.objects.update(token=uuid.uuid4())
    assert not ENDINGS[ending](mine)
    assert (now(job).status, now(job).epoch) == (Status.RUNNING, 0)
    assert not JobEvent.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_run_that_was_rescued_and_started_again_has_lost(ending: str) -> None:
    job = make(Status.RUNNING, lease_at=past())
    old = claim(job)
    assert lifecycle.rescue("default", 10) == 1
    Job.objects.update(due_at=past())
    new = claim_committed(job.pk)
    assert isinstance(new, Claim)
    assert not ENDINGS[ending](old)
    assert not lifecycle.lock_by_token(old)
    assert ENDINGS[ending](new)


@pytest.mark.django_db
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_run_that_was_cancelled_and_requeued_has_lost(ending: str) -> None:
    """Status and attempt are as before; only the epoch tells."""
    job = make()
    mine = claim(job)
    lifecycle.cancel([job.pk], "default", actor="ann")
    lifecycle.requeue([job.pk], "default", actor="ann")
    assert (now(job).status, now(job).failures) == (mine.job.status, mine.job.failures)
    assert not ENDINGS[ending](mine)


@pytest.mark.django_db
def test_a_transition_that_is_not_in_the_graph_raises() -> None:
    for status in FINAL:
        with pytest.raises(ValueError, match="no transition"):
            lifecycle.succeed(claim(make(status)), "w", None)


@pytest.mark.django_db
def test_every_row_with_an_end_has_its_time_and_no_other() -> None:
    for status in (Status.WAITING, Status.RUNNING):
        for ending in ENDINGS.values():
            ending(claim(make(status)))
    lifecycle.cancel([make().pk], "default", actor="ann")
    lifecycle.requeue([make("failed").pk], "default", actor="ann")
    for job in Job.objects.all():
        assert (job.finished_at is not None) == job.is_final, job.status
        assert job.status in TRANSITIONS


# --- settling ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_success_wipes_the_errors_of_earlier_attempts() -> None:
    mine = claim(make(error="old", traceback="old", reason=Reason.ERROR))
    lifecycle.succeed(mine, "w", '"value"')
    after = now(mine.job)
    assert (after.error, after.traceback, after.reason, after.result) == ("", "", Reason.NONE, '"value"')
    assert not JobEvent.objects.exists()


@pytest.mark.django_db
def test_a_run_that_reports_gives_its_crash_back() -> None:
    for ending in ENDINGS.values():
        mine = claim(make(Status.RUNNING, crashes=3))
        ending(mine)
        assert now(mine.job).crashes == 2


@pytest.mark.django_db
def test_a_failure_counts_and_is_told() -> None:
    mine = claim(make(failures=2))
    lifecycle.fail(mine, "w", Reason.ERROR, "a\u0000b", "t\u0000r")
    after, event = now(mine.job), JobEvent.objects.get()
    assert (after.failures, after.error, after.traceback) == (3, "a\\x00b", "t\\x00r")
    assert (event.kind, event.actor, event.detail, event.traceback) == ("failure", "w", "gave up: a\\x00b", "t\\x00r")


@pytest.mark.django_db
@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("ending", ["succeed", "fail", "expire"])
def test_a_key_is_freed_by_an_end_unless_it_is_for_ever(ending: str, forever: bool) -> None:
    mine = claim(make(key="k", live_key="k", key_forever=forever))
    ENDINGS[ending](mine)
    assert (now(mine.job).key, now(mine.job).live_key) == ("k", "k" if forever else None)


@pytest.mark.django_db
def test_a_key_is_kept_by_a_retry() -> None:
    mine = claim(make(key="k", live_key="k"))
    ENDINGS["run_again"](mine)
    assert now(mine.job).live_key == "k"


@pytest.mark.parametrize("text", ["", "short", "x" * 100, "y" * 101, "z" * 10**6, "\u0000" * 60])
def test_clean_text_has_no_nul_and_keeps_both_ends(text: str) -> None:
    cleaned = db_errors.clean(text, 100)
    assert "\x00" not in cleaned
    assert len(cleaned) < 160
    assert cleaned[:40] == text.replace("\x00", "\\x00")[:40]
    assert cleaned[-40:] == text.replace("\x00", "\\x00")[-40:]
