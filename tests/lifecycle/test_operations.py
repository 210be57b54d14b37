"""What people, and workers without the code, do to jobs from outside a run."""

from __future__ import annotations

import json
import uuid

import pytest
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.lifecycle import Claim, Refusal
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.status import FINAL, Reason, Status
from tests.lifecycle.made import claim, claim_atomic, claim_committed, make
from tests.support.harness import Stack, Transaction
from tests.support.rows import future, now, past
from tests.support.threads import Aside

pytestmark = pytest.mark.promise("I4")

# --- requeue and cancel -----------------------------------------------------------------------------------------------


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
    assert list(JobEvent.objects.order_by("pk").values_list("kind", flat=True)) == ["requeue", "cancel"]


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
    lifecycle.record(lifecycle.Subject(uuid.uuid4(), "t\u0000"), "default", "crash", "w\u0000", "d\u0000")


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
    other = Transaction(lambda: lifecycle.lock_by_token(mine))
    assert other.answer is True
    assert lifecycle.rescue("default", 10) == 0
    assert lifecycle.extend_lease(mine, 10), "the run holds its row itself"
    other.end()
    assert lifecycle.rescue("default", 10) == 1


@pytest.mark.servers
def test_an_event_is_recorded_while_a_run_holds_the_row(stack: Stack) -> None:
    job = make()
    other = Transaction(lambda: lifecycle.claim_atomic(job.pk, 0, "default"))
    lifecycle.record(job, "default", "crash", "parent", "died")
    other.end()
    assert lifecycle.last_death(job.pk, "default").detail == "died"


@pytest.mark.servers
def test_of_many_claims_at_once_one_wins(stack: Stack) -> None:
    job = make()
    threads = [Aside(lambda: claim_committed(job.pk)) for _ in range(8)]
    assert [isinstance(thread.value(), Claim) for thread in threads].count(True) == 1
    assert (now(job).crashes, now(job).epoch) == (1, 1)


# --- code that is missing ---------------------------------------------------------------------------------------------


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
        lifecycle.record(lifecycle.Subject(job_id), "default", kind, "w", detail)
    assert lifecycle.last_death(one, "default").detail == "second"
    assert lifecycle.last_death(uuid.uuid4(), "default") is None
