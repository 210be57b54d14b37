"""Every transition is one conditional UPDATE that says whether it won."""

from __future__ import annotations

import datetime
import json
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
from tests.support import inprocess
from tests.support.harness import Stack, Transaction
from tests.testapp import tasks

pytestmark = pytest.mark.promise("I4")

rows = inprocess.rows


def past(seconds: float = 60) -> datetime.datetime:
    return timezone.now() - datetime.timedelta(seconds=seconds)


def future(seconds: float = 60) -> datetime.datetime:
    return timezone.now() + datetime.timedelta(seconds=seconds)


def make(status: str = Status.WAITING, **values: Any) -> Job:
    given: dict[str, Any] = {
        "task": tasks.effect.name,
        "queue": "celery",
        "status": status,
        "due_at": past(),
        "payload": b"[[], {}, {}]",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "envelope": '{"headers": {}, "properties": {}, "exchange": "", "routing_key": "celery"}',
        "finished_at": past() if status in FINAL else None,
    }
    if status == Status.RUNNING:
        given.update(token=uuid.uuid4(), lease_at=future(), crashes=1)
    job = Job(**{**given, **values})
    job.save(force_insert=True)
    return Job.objects.get(pk=job.pk)


def claim(job: Job) -> Claim:
    return Claim(Job.objects.get(pk=job.pk), "default", timezone.now(), job.token)


def now(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


ENDINGS: dict[str, Callable[[Claim], bool]] = {
    "succeed": lambda claim: lifecycle.succeed(claim, "w", '"value"'),
    "fail": lambda claim: lifecycle.fail(claim, "w", Reason.ERROR, "no", "trace"),
    "expire": lambda claim: lifecycle.expire(claim, "w"),
    "run_again": lambda claim: lifecycle.run_again(claim, "w", Reason.ASKED, delay=5),
}


# --- claims ---------------------------------------------------------------------------------------------------------


def claim_atomic(job_id: uuid.UUID, content_version: int = 0) -> Claim | Refusal:
    with transaction.atomic():
        return lifecycle.claim_atomic(job_id, content_version, "default")


def claim_committed(
    job_id: uuid.UUID, content_version: int = 0, worker: str = "w@h pid 1 #a", **options: Any
) -> Claim | Refusal:
    return lifecycle.claim_committed(job_id, content_version, "default", worker=worker, lease=10, **options)


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


# --- the fence ------------------------------------------------------------------------------------------------------


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
    assert not lifecycle.hold_by_token(old)
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


# --- settling -------------------------------------------------------------------------------------------------------


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


# --- leases ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_lease_is_extended_up_to_its_deadline() -> None:
    job = make(Status.RUNNING, lease_at=future(1), deadline_at=future(20))
    mine = claim(job)
    assert lifecycle.extend_lease(mine, 10)
    assert 5 < (now(job).lease_at - timezone.now()).total_seconds() <= 10
    assert lifecycle.extend_lease(mine, 1000)
    assert now(job).lease_at == now(job).deadline_at


@pytest.mark.django_db(transaction=True)
def test_a_lease_that_was_lost_is_not_extended() -> None:
    job = make(Status.RUNNING, lease_at=future(1), deadline_at=future(20))
    mine = claim(job)
    Job.objects.update(token=uuid.uuid4())
    before = now(job).lease_at
    assert not lifecycle.extend_lease(mine, 10)
    assert now(job).lease_at == before


@pytest.mark.django_db
def test_rescue_takes_only_runs_whose_lease_is_over() -> None:
    live, dead = make(Status.RUNNING), make(Status.RUNNING, lease_at=past(), crashes=2)
    assert lifecycle.rescue("default", 10, actor="the sweeper") == 1
    assert now(live).status == Status.RUNNING
    after = now(dead)
    assert (after.status, after.sends, after.token, after.lease_at, after.reason) == (
        Status.WAITING,
        0,
        None,
        None,
        Reason.CRASH,
    )
    assert after.crashes == 2, "its start never reported"
    assert after.due_at > timezone.now(), "a suspect waits a little"
    event = JobEvent.objects.get()
    assert (event.kind, event.actor, event.job_id) == ("rescue", "the sweeper", dead.pk)


@pytest.mark.django_db
def test_a_first_crash_is_due_again_at_once() -> None:
    dead = make(Status.RUNNING, lease_at=past(), crashes=1)
    lifecycle.rescue("default", 10)
    assert now(dead).due_at <= timezone.now()


@pytest.mark.django_db
def test_rescue_takes_no_more_than_it_may() -> None:
    for _ in range(3):
        make(Status.RUNNING, lease_at=past())
    assert lifecycle.rescue("default", 2) == 2


# --- requeue and cancel ---------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_requeue_starts_anew_with_fresh_counters() -> None:
    job = make(
        "failed",
        failures=3,
        crashes=2,
        interruptions=1,
        epoch=7,
        content_version=2,
        result='"old"',
        started_at=past(),
        expires_at=past(),
        deadline_at=past(),
        reason=Reason.CRASH,
        sends=4,
        check_at=future(),
    )
    report = lifecycle.requeue([job.pk], "default", actor="ann")
    assert (report.done, report.skipped) == ([job.pk], {})
    after = now(job)
    assert (after.status, after.reason, after.sends, after.check_at) == (Status.WAITING, Reason.REQUEUED, 0, None)
    assert (after.failures, after.crashes, after.interruptions, after.requeues) == (0, 0, 0, 1)
    assert (after.started_at, after.finished_at, after.expires_at, after.deadline_at) == (None, None, None, None)
    assert (after.epoch, after.content_version, after.result) == (8, 2, None)
    event = JobEvent.objects.get()
    assert (event.kind, event.actor, event.detail) == ("requeue", "ann", "was failed")


@pytest.mark.django_db
def test_requeue_reports_what_it_skipped_and_why() -> None:
    running, missing, failed = make(Status.RUNNING), uuid.uuid4(), make("failed")
    report = lifecycle.requeue([running.pk, missing, failed.pk], "default", actor="ann")
    assert report.done == [failed.pk]
    assert report.skipped == {running.pk: "running", missing: "no such job"}
    assert now(running).status == Status.RUNNING


@pytest.mark.django_db
def test_requeue_of_a_waiting_job_makes_it_due_now() -> None:
    job = make(due_at=future(), failures=2)
    lifecycle.requeue([job.pk], "default", actor="ann")
    assert now(job).due_at <= timezone.now()


@pytest.mark.django_db
def test_requeue_to_another_queue_sends_the_message_there() -> None:
    job = make("failed")
    lifecycle.requeue([job.pk], "default", actor="ann", queue="other")
    envelope = json.loads(now(job).envelope)
    assert (now(job).queue, envelope["routing_key"], envelope["exchange"]) == ("other", "other", "")
    assert "to queue other" in JobEvent.objects.get().detail


@pytest.mark.django_db
def test_requeue_takes_its_key_back() -> None:
    job = make("failed", key="k", live_key=None)
    lifecycle.requeue([job.pk], "default", actor="ann")
    assert now(job).live_key == "k"


@pytest.mark.django_db
def test_a_requeue_of_a_job_whose_key_is_taken_skips_it_alone() -> None:
    old, other = make("failed", key="k", live_key=None), make("failed")
    make(key="k", live_key="k")
    report = lifecycle.requeue([old.pk, other.pk], "default", actor="ann")
    assert report.done == [other.pk]
    assert "newer unfinished job" in report.skipped[old.pk]
    assert now(old).status == "failed"


@pytest.mark.django_db
def test_requeue_of_two_with_one_key_takes_one() -> None:
    jobs = [make("failed", key="k", live_key=None) for _ in range(2)]
    report = lifecycle.requeue([job.pk for job in jobs], "default", actor="ann")
    assert (len(report.done), len(report.skipped)) == (1, 1)


@pytest.mark.django_db
def test_requeue_of_a_skipped_job_leaves_its_route_alone() -> None:
    job = make("failed", key="k", live_key=None)
    make(key="k", live_key="k")
    lifecycle.requeue([job.pk], "default", actor="ann", queue="other")
    assert (now(job).queue, json.loads(now(job).envelope)["routing_key"]) == ("celery", "celery")


@pytest.mark.django_db
def test_requeue_takes_thousands_in_batches() -> None:
    Job.objects.bulk_create(
        Job(
            task="t",
            queue="q",
            status="failed",
            finished_at=past(),
            due_at=past(),
            payload=b"",
            content_type="",
            content_encoding="",
            envelope="{}",
        )
        for _ in range(1001)
    )
    ids = list(Job.objects.values_list("pk", flat=True))
    assert len(lifecycle.requeue(ids, "default", actor="ann").done) == 1001
    assert len(lifecycle.cancel(ids, "default", actor="ann").done) == 1001


@pytest.mark.django_db
def test_the_same_id_twice_is_one_requeue_and_one_cancel() -> None:
    job = make("failed")
    lifecycle.requeue([job.pk, job.pk], "default", actor="ann")
    lifecycle.cancel([job.pk, job.pk], "default", actor="ann")
    assert list(JobEvent.objects.values_list("kind", flat=True)) == ["requeue", "cancel"]


@pytest.mark.django_db
def test_cancel_settles_what_waits_and_reports_the_rest() -> None:
    waiting, running, done = make(key="k", live_key="k"), make(Status.RUNNING), make("succeeded")
    missing = uuid.uuid4()
    report = lifecycle.cancel([waiting.pk, running.pk, done.pk, missing], "default", actor="ann", reason=Reason.REVOKED)
    assert report.done == [waiting.pk]
    assert report.skipped == {running.pk: "running", done.pk: "already succeeded", missing: "no such job"}
    after = now(waiting)
    assert (after.status, after.reason, after.live_key, after.error) == (
        "cancelled",
        Reason.REVOKED,
        None,
        "cancelled by ann",
    )
    assert after.finished_at is not None
    event = JobEvent.objects.get()
    assert (event.kind, event.actor) == ("cancel", "ann")


@pytest.mark.django_db
def test_a_long_name_of_who_asks_is_cut_and_a_nul_in_it_is_written() -> None:
    lifecycle.cancel([make().pk], "default", actor="a\u0000" + "x" * 500)
    assert len(JobEvent.objects.get().actor) <= 255
    lifecycle.record(uuid.uuid4(), "default", "crash", "w\u0000", "d\u0000")


@pytest.mark.servers
def test_cancel_and_requeue_do_not_wait_for_a_row_that_a_run_holds(stack: Stack) -> None:
    held, free = make(), make()
    other = Transaction(lambda: lifecycle.claim_atomic(held.pk, 0, "default"))
    assert isinstance(other.answer, Claim)
    for action in (lifecycle.cancel, lifecycle.requeue):
        report = action([held.pk, free.pk], "default", actor="ann")
        assert (report.done, report.skipped) == ([free.pk], {held.pk: "running"})
    assert claim_atomic(held.pk) is Refusal.LOCKED
    assert claim_committed(held.pk) is Refusal.LOCKED
    assert not lifecycle.step_back(held.pk, "default", 5)
    other.end()
    assert lifecycle.cancel([held.pk], "default", actor="ann").done == [held.pk]


@pytest.mark.servers
def test_rescue_leaves_a_run_whose_lock_is_held_though_its_lease_is_over(stack: Stack) -> None:
    job = make(Status.RUNNING, lease_at=past())
    mine = claim(job)
    other = Transaction(lambda: lifecycle.hold_by_token(mine))
    assert other.answer is True
    assert lifecycle.rescue("default", 10) == 0
    assert lifecycle.extend_lease(mine, 10), "the run holds its row itself"
    other.end()
    assert lifecycle.rescue("default", 10) == 1


@pytest.mark.servers
def test_an_event_is_recorded_while_a_run_holds_the_row(stack: Stack) -> None:
    job = make()
    other = Transaction(lambda: lifecycle.claim_atomic(job.pk, 0, "default"))
    lifecycle.record(job.pk, "default", "crash", "parent", "died")
    other.end()
    assert lifecycle.last_death(job.pk, "default").detail == "died"


@pytest.mark.servers
def test_of_many_claims_at_once_one_wins(stack: Stack) -> None:
    import threading

    from django.db import connections

    job = make()
    answers: list[Any] = []

    def take() -> None:
        answers.append(claim_committed(job.pk))
        connections.close_all()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [isinstance(answer, Claim) for answer in answers].count(True) == 1
    assert (now(job).crashes, now(job).epoch) == (1, 1)


# --- code that is missing -------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_job_handed_back_waits_and_is_parked_after_the_grace() -> None:
    job = make()
    assert lifecycle.hand_back(job.pk, "default", worker="w", why="unknown task", delay=5) == Status.WAITING
    after = now(job)
    assert (after.reason, after.sends, after.error, after.failures) == (Reason.PARKED, 0, "unknown task", 0)
    first = after.deadline_at
    lifecycle.hand_back(job.pk, "default", worker="w", why="unknown task", delay=5)
    assert now(job).deadline_at == first, "the grace is not prolonged"
    Job.objects.update(deadline_at=past())
    assert lifecycle.hand_back(job.pk, "default", worker="w", why="unknown task", delay=5) == Status.FAILED
    assert (now(job).status, now(job).reason, now(job).failures) == ("failed", Reason.PARKED, 0)
    assert list(JobEvent.objects.values_list("kind", flat=True)) == ["parked", "parked"]


@pytest.mark.django_db
@pytest.mark.parametrize("status", [Status.RUNNING, *FINAL])
def test_a_job_that_another_has_taken_is_not_handed_back(status: str) -> None:
    job = make(status)
    assert lifecycle.hand_back(job.pk, "default", worker="w", why="x", delay=5) == status
    assert now(job).epoch == 0
    assert lifecycle.hand_back(uuid.uuid4(), "default", worker="w", why="x", delay=5) is None


@pytest.mark.django_db
def test_a_message_from_elsewhere_is_parked_once() -> None:
    job = Job(
        id=uuid.uuid4(),
        task="x",
        queue="q",
        due_at=past(),
        payload=b"",
        content_type="",
        content_encoding="",
        envelope="{}",
    )
    assert lifecycle.park(job, "default", worker="w", why="unknown\u0000task")
    assert not lifecycle.park(job, "default", worker="w", why="unknown task")
    after = now(job)
    assert (after.status, after.reason, after.error) == ("failed", Reason.PARKED, "unknown\\x00task")
    assert after.finished_at is not None
    assert JobEvent.objects.count() == 1


@pytest.mark.django_db
def test_last_death_is_the_latest_crash_or_time_limit_of_that_job() -> None:
    one, other = uuid.uuid4(), uuid.uuid4()
    for job_id, kind, detail in (
        (one, "crash", "first"),
        (one, "time limit", "second"),
        (one, "requeue", "third"),
        (other, "crash", "another's"),
    ):
        lifecycle.record(job_id, "default", kind, "w", detail)
    assert lifecycle.last_death(one, "default").detail == "second"
    assert lifecycle.last_death(uuid.uuid4(), "default") is None
