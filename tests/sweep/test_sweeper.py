"""What a sweep publishes: due rows, overdue rows, and what becomes of those that the broker did not confirm."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.db.models import Count
from django.test import override_settings
from django.utils import timezone

from reliable_jobs.conf import settings
from reliable_jobs.dispatch.answers import BrokerTimeout, Confirms
from reliable_jobs.dispatch.publisher import Publisher, publisher
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.sweep import sweeper
from reliable_jobs.sweep.sends import counting, next_check
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.support.rows import future, now, past
from tests.sweep.swept import relayed
from tests.testapp import tasks

jobs = inprocess.jobs
rows = inprocess.rows


def settle(**values: Any) -> Job:
    """A row of the same queue that has settled a moment ago, on its first send."""
    (job,) = relayed(1)
    given = {"status": "succeeded", "sends": 1, "finished_at": timezone.now(), **values}
    Job.objects.filter(pk=job.pk).update(**given)
    return now(job)


def check_in(job: Job) -> float:
    return (now(job).check_at - timezone.now()).total_seconds()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the broker says to the next publishes: functions from messages to a Confirms. No broker does so at will."""
    given: list[Any] = []
    real = Publisher.publish

    def publish(self: Publisher, messages: Any, timeout: float | None = None) -> Confirms:
        return given.pop(0)(messages) if given else real(self, messages, timeout)

    monkeypatch.setattr(Publisher, "publish", publish)
    return given


# --- due --------------------------------------------------------------------------------------------------------------


def test_what_is_due_is_published_once_and_its_next_look_is_set(rows: InProcess) -> None:
    (job,) = relayed()
    assert rows.sweep().published == 1
    assert (now(job).sends, now(job).epoch) == (1, 0)
    assert 10 < check_in(job) <= 15
    assert [message.headers["id"] for message in rows.take()] == [str(job.pk)]
    assert rows.sweep().idle
    assert rows.take() == []


def test_what_is_not_due_is_left(rows: InProcess) -> None:
    relayed(due_at=future())
    assert rows.sweep().idle
    assert rows.take() == []


@pytest.mark.parametrize("status", ["running", "succeeded", "failed", "cancelled", "expired"])
def test_what_does_not_wait_is_left(rows: InProcess, status: str) -> None:
    relayed(status=status, lease_at=future())
    assert rows.sweep().idle


def test_due_rows_go_out_in_the_order_of_their_time(rows: InProcess) -> None:
    made = relayed(3)
    for job, ago in zip(made, (10, 30, 20), strict=True):
        Job.objects.filter(pk=job.pk).update(due_at=past(ago))
    rows.sweep()
    wanted = [str(made[n].pk) for n in (1, 2, 0)]
    assert [message.headers["id"] for message in rows.take()] == wanted


@override_settings(RELIABLE_JOBS={"SWEEP_LIMIT": 6, "PUBLISH_WINDOW": 4, "DISPATCH": "relay"})
def test_no_queue_waits_until_another_one_is_empty(rows: InProcess) -> None:
    for queue, count, ago in (("long", 9, 90), ("short", 1, 10), ("other", 2, 20)):
        for _ in range(count):
            relayed(queue=queue, due_at=past(ago))

    def left() -> dict[str, int]:
        due = Job.objects.due().order_by().values("queue").annotate(n=Count("pk"))
        return {row["queue"]: row["n"] for row in due}

    report = rows.sweep()
    assert (report.published, report.more, left()) == (6, True, {"long": 6})
    assert (rows.sweep().published, rows.sweep().published, left()) == (6, 0, {})


def test_the_message_says_which_send_it_is(rows: InProcess) -> None:
    relayed(content_version=3, requeues=1)
    rows.sweep()
    (message,) = rows.take()
    assert message.headers[HEADER] == {"content_version": 3, "using": "default", "send": 1, "requeues": 1}


@override_settings(RELIABLE_JOBS={"SWEEP_LIMIT": 5, "PUBLISH_WINDOW": 2, "DISPATCH": "relay"})
def test_a_sweep_takes_no_more_than_it_may_in_windows(rows: InProcess) -> None:
    for n in range(7):
        tasks.effect.delay(str(n))
    assert [rows.sweep().published for _ in range(3)] == [5, 2, 0]


def test_a_sweep_within_a_callers_transaction_leaves_its_commit_alone(rows: InProcess) -> None:
    """Only its own COMMIT need not wait for the disk."""
    if connection.vendor != "postgresql":
        pytest.skip("PostgreSQL's")
    with counting("default"), connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("on",)


def test_an_idle_sweep_asks_little(rows: InProcess, django_assert_max_num_queries: Any) -> None:
    with django_assert_max_num_queries(13):  # on PostgreSQL; one of them asks how long it has been up
        assert rows.sweep().idle


# --- unconfirmed ------------------------------------------------------------------------------------------------------


def test_what_was_not_confirmed_goes_back_at_no_cost(rows: InProcess, answers: list[Any]) -> None:
    confirmed, lost = relayed(2)
    answers.append(lambda messages: Confirms(confirmed={confirmed.pk}, error=BrokerTimeout("no confirm")))
    report = rows.sweep()
    assert (report.published, report.unconfirmed) == (1, 1)
    assert (now(confirmed).sends, now(lost).sends) == (1, 0)
    assert rows.sweep().published == 1
    assert now(lost).sends == 1


def test_an_overdue_row_without_confirm_keeps_its_place_for_a_grace(rows: InProcess, answers: list[Any]) -> None:
    (job,) = relayed(sends=3, check_at=past())
    answers.append(lambda messages: Confirms(error=BrokerTimeout("no confirm")))
    assert rows.sweep().unconfirmed == 1
    assert now(job).sends == 3
    assert 10 < check_in(job) <= 15


def test_a_nacked_message_goes_back(rows: InProcess, answers: list[Any]) -> None:
    (job,) = relayed()
    answers.append(lambda messages: Confirms(nacked={job.pk}))
    assert rows.sweep().unconfirmed == 1
    assert now(job).sends == 0


@pytest.mark.promise("I7")
def test_a_returned_message_keeps_its_doubling_and_gets_an_event(rows: InProcess, answers: list[Any]) -> None:
    (job,) = relayed()
    answers.append(lambda messages: Confirms(returned={job.pk: "unroutable: no queue"}))
    rows.sweep()
    assert now(job).sends == 1
    assert check_in(job) > 10
    (event,) = job.events.all()
    assert (event.kind, event.detail, event.actor) == ("unroutable", "unroutable: no queue", "sweeper")
    assert rows.sweep().idle, "it is not tried again at once"


@pytest.mark.promise("I6")
def test_of_many_returns_the_history_keeps_the_first_and_the_latest(rows: InProcess, answers: list[Any]) -> None:
    (job,) = relayed()
    for number in range(4):
        answers.append(lambda messages, number=number: Confirms(returned={job.pk: f"unroutable: {number}"}))
        rows.sweep()
        Job.objects.update(check_at=past())
    assert [event.detail for event in job.events.order_by("pk")] == ["unroutable: 0", "unroutable: 3"]
    JobEvent.objects.create(job=job, kind="requeue", actor="Ada")
    answers.append(lambda messages: Confirms(returned={job.pk: "unroutable: again"}))
    rows.sweep()
    assert [event.detail for event in job.events.order_by("pk")][3:] == ["unroutable: again"]


def test_what_has_settled_while_its_batch_was_on_the_wire_is_left_alone(rows: InProcess, answers: list[Any]) -> None:
    (job,) = relayed()

    def settles(messages: Any) -> Confirms:
        Job.objects.update(status="succeeded", finished_at=timezone.now())
        return Confirms(error=BrokerTimeout("no confirm"))

    answers.append(settles)
    rows.sweep()
    assert (now(job).status, now(job).sends) == ("succeeded", 1)


@pytest.mark.promise("I5")
def test_without_a_broker_nothing_is_raised(db: None) -> None:
    with inprocess.broker("amqp://127.0.0.1:1//", "nowhere"):
        due, overdue = relayed()[0], relayed(sends=2, check_at=past())[0]
        before = now(overdue).check_at
        assert sweeper.sweep(app).idle
        assert (now(due).sends, now(overdue).sends, now(overdue).check_at) == (0, 2, before)


# --- overdue ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I8")
@pytest.mark.parametrize("sends", [1, 2, 3, 6, 20])
def test_every_send_doubles_the_next_look(rows: InProcess, sends: int) -> None:
    (job,) = relayed(sends=sends, check_at=past())
    assert rows.sweep().republished == 1
    assert now(job).sends == sends + 1
    wanted = next_check(15, sends + 1, 3600)
    assert wanted - 5 < check_in(job) <= wanted
    (message,) = rows.take()
    assert message.headers[HEADER]["send"] == sends + 1


def test_what_is_not_overdue_is_left(rows: InProcess) -> None:
    relayed(sends=1, check_at=future())
    assert rows.sweep().idle


@pytest.mark.promise("I8")
def test_in_a_queue_that_moves_only_what_was_overtaken_is_sent_again(rows: InProcess) -> None:
    (early,) = relayed(sends=1, check_at=past(), due_at=past(100))
    (late,) = relayed(sends=1, check_at=past(), due_at=past(20))
    settle(due_at=past(50))
    assert rows.sweep().republished == 1
    assert (now(early).sends, now(late).sends) == (2, 1)
    assert now(late).check_at == late.check_at, "waiting longer writes nothing"


@pytest.mark.promise("I8")
def test_being_overtaken_by_a_little_is_not_being_lost(rows: InProcess) -> None:
    (job,) = relayed(sends=1, check_at=past(), due_at=past(54))
    settle(due_at=past(50))
    assert rows.sweep().idle
    settle(due_at=past(40))
    assert rows.sweep().republished == 1
    assert now(job).sends == 2


@pytest.mark.promise("I8")
def test_a_later_send_is_not_overtaken_by_what_stood_before_it(rows: InProcess) -> None:
    """It went to the end of the queue, with the time at which its job was due long ago."""
    (job,) = relayed(sends=2, check_at=past(50), due_at=past(1000))
    settle(due_at=past(100))
    settle(due_at=past(47))
    assert rows.sweep().idle
    settle(due_at=past(20))
    assert rows.sweep().republished == 1
    assert now(job).sends == 3


@pytest.mark.parametrize(
    "values",
    [{"sends": 2}, {"failures": 1}, {"priority": 5}, {"queue": "another"}, {"finished_at": past(3600)}],
    ids=lambda values: next(iter(values)),
)
def test_who_does_not_speak_for_the_queue_overtakes_nobody(rows: InProcess, values: dict[str, Any]) -> None:
    """A second send, a retry, another priority, another queue, or long ago: none says that the queue has passed by."""
    with override_settings(RELIABLE_JOBS={"RECOVERY_LIMIT": 1}):
        relayed(sends=2, check_at=future())  # the one recovery message that may be out
        (job,) = relayed(sends=1, check_at=past(), due_at=past(100))
        settle(**{"due_at": past(1), **values})
        rows.sweep()
    assert now(job).sends == 1


def test_priorities_have_frontiers_of_their_own(rows: InProcess) -> None:
    (high,) = relayed(sends=1, check_at=past(), due_at=past(100), priority=9)
    (low,) = relayed(sends=1, check_at=past(), due_at=past(100), priority=1)
    settle(due_at=past(10), priority=9)
    settle(due_at=past(200), priority=1)
    rows.sweep()
    assert (now(high).sends, now(low).sends) == (2, 1)


@pytest.mark.promise("I8")
def test_in_a_queue_that_stands_still_recovery_is_bounded(rows: InProcess) -> None:
    with override_settings(RELIABLE_JOBS={"RECOVERY_LIMIT": 3}):
        relayed(10, sends=1, check_at=past())
        assert rows.sweep().republished == 3
        assert rows.sweep().republished == 0
        rows.take()
        Job.objects.filter(sends=2).first().delete()
        assert rows.sweep().republished == 1


@pytest.mark.promise("I8")
def test_after_an_outage_the_brokers_messages_are_not_copied_at_once(
    rows: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one is tried at a time: a broker that goes and comes all the time must not stop recovery (I2)."""
    relayed(10, sends=1, check_at=past())
    broker_answers = iter([False, True])
    monkeypatch.setattr(Publisher, "_answers", lambda self, timeout: next(broker_answers, True))
    assert rows.sweep().republished == 0, "away"
    assert [rows.sweep().republished for _ in range(3)] == [1, 0, 0], "just back"
    Job.objects.filter(sends=2).delete()
    assert rows.sweep().republished == 1
    back_at = publisher(app)._back_at
    assert back_at is not None
    publisher(app)._back_at = back_at - settings.GRACE
    assert rows.sweep().republished == 8


def test_every_queue_has_its_own_bound(rows: InProcess) -> None:
    with override_settings(RELIABLE_JOBS={"RECOVERY_LIMIT": 2}):
        relayed(3, sends=1, check_at=past())
        relayed(3, sends=1, check_at=past(), queue="another")
        assert rows.sweep().republished == 4


@pytest.mark.promise("I2")
def test_after_a_wipe_every_message_comes_again(jobs: InProcess) -> None:
    for n in range(5):
        tasks.effect.delay(f"wiped {n}")
    assert len(jobs.take()) == 5  # and nobody ran them
    Job.objects.update(check_at=past())
    assert jobs.sweep().republished == 5
    jobs.work()
    assert set(Job.objects.values_list("status", flat=True)) == {"succeeded"}


@pytest.mark.promise("I8")
def test_every_send_doubles_the_time_to_the_next_look_up_to_a_limit() -> None:
    assert [next_check(15, sends, 3600) for sends in (1, 2, 3, 4)] == [15, 30, 60, 120]
    assert next_check(15, 9, 3600) == 3600
    assert next_check(15, 10**9, 3600) == 3600
    assert next_check(15, 0, 3600) == 15
