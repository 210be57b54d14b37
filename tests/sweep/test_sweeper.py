"""What is due is published once; what is overdue again, sparingly; dead runs are taken back."""

from __future__ import annotations

import datetime
import functools
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from reliable_jobs import databases
from reliable_jobs.conf import settings
from reliable_jobs.dispatch.publisher import Publisher, publisher
from reliable_jobs.dispatch.receipt import BrokerTimeout, Receipt
from reliable_jobs.message.row_to_message import HEADER
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.sweep import ensure_jobs as declared
from reliable_jobs.sweep import sweeper
from reliable_jobs.sweep.ensure_jobs import ensure_jobs, sweep_declared
from reliable_jobs.sweep.loop import SweepLoop
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import Stack, Transaction
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Parent

jobs = inprocess.jobs
rows = inprocess.rows
second_database = inprocess.second_database


def past(seconds: float = 60) -> datetime.datetime:
    return timezone.now() - datetime.timedelta(seconds=seconds)


def future(seconds: float = 60) -> datetime.datetime:
    return timezone.now() + datetime.timedelta(seconds=seconds)


def relayed(count: int = 1, **values: Any) -> list[Job]:
    """Rows as a relay's requests leave them, with some columns set."""
    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        ids = [tasks.effect.delay(str(n)).id for n in range(count)]
    if values:
        Job.objects.filter(pk__in=ids).update(**values)
    return list(Job.objects.filter(pk__in=ids))


def now(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


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
    """What the broker says to the next publishes: functions from messages to a Receipt. No broker does so at will."""
    given: list[Any] = []
    real = Publisher.publish

    def publish(self: Publisher, messages: Any, timeout: float | None = None) -> Receipt:
        return given.pop(0)(messages) if given else real(self, messages, timeout)

    monkeypatch.setattr(Publisher, "publish", publish)
    return given


# --- due ------------------------------------------------------------------------------------------------------------


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


def test_an_idle_sweep_asks_little(rows: InProcess, django_assert_max_num_queries: Any) -> None:
    with django_assert_max_num_queries(11):  # on PostgreSQL; one of them asks how long it has been up
        assert rows.sweep().idle


# --- unconfirmed ----------------------------------------------------------------------------------------------------


def test_what_was_not_confirmed_goes_back_at_no_cost(rows: InProcess, answers: list[Any]) -> None:
    confirmed, lost = relayed(2)
    answers.append(lambda messages: Receipt(confirmed={confirmed.pk}, error=BrokerTimeout("no confirm")))
    report = rows.sweep()
    assert (report.published, report.unconfirmed) == (1, 1)
    assert (now(confirmed).sends, now(lost).sends) == (1, 0)
    assert rows.sweep().published == 1
    assert now(lost).sends == 1


def test_an_overdue_row_without_confirm_keeps_its_place_for_a_grace(rows: InProcess, answers: list[Any]) -> None:
    (job,) = relayed(sends=3, check_at=past())
    answers.append(lambda messages: Receipt(error=BrokerTimeout("no confirm")))
    assert rows.sweep().unconfirmed == 1
    assert now(job).sends == 3
    assert 10 < check_in(job) <= 15


def test_a_nacked_message_goes_back(rows: InProcess, answers: list[Any]) -> None:
    (job,) = relayed()
    answers.append(lambda messages: Receipt(nacked={job.pk}))
    assert rows.sweep().unconfirmed == 1
    assert now(job).sends == 0


@pytest.mark.promise("I7")
def test_a_returned_message_keeps_its_doubling_and_gets_an_event(rows: InProcess, answers: list[Any]) -> None:
    (job,) = relayed()
    answers.append(lambda messages: Receipt(returned={job.pk: "unroutable: no queue"}))
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
        answers.append(lambda messages, number=number: Receipt(returned={job.pk: f"unroutable: {number}"}))
        rows.sweep()
        Job.objects.update(check_at=past())
    assert [event.detail for event in job.events.order_by("pk")] == ["unroutable: 0", "unroutable: 3"]
    JobEvent.objects.create(job=job, kind="requeue", actor="Ada")
    answers.append(lambda messages: Receipt(returned={job.pk: "unroutable: again"}))
    rows.sweep()
    assert [event.detail for event in job.events.order_by("pk")][3:] == ["unroutable: again"]


def test_what_has_settled_while_its_batch_was_on_the_wire_is_left_alone(rows: InProcess, answers: list[Any]) -> None:
    (job,) = relayed()

    def settles(messages: Any) -> Receipt:
        Job.objects.update(status="succeeded", finished_at=timezone.now())
        return Receipt(error=BrokerTimeout("no confirm"))

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


# --- overdue --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I8")
@pytest.mark.parametrize("sends", [1, 2, 3, 6, 20])
def test_every_send_doubles_the_next_look(rows: InProcess, sends: int) -> None:
    (job,) = relayed(sends=sends, check_at=past())
    assert rows.sweep().republished == 1
    assert now(job).sends == sends + 1
    wanted = sweeper.next_check(15, sends + 1, 3600)
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


# --- dead runs ------------------------------------------------------------------------------------------------------


def test_a_dead_run_is_rescued_and_published(jobs: InProcess) -> None:
    (job,) = relayed(status="running", token=uuid.uuid4(), lease_at=past(), crashes=1)
    assert jobs.sweep().rescued == 1
    jobs.sweep()
    jobs.work()
    assert (now(job).status, now(job).crashes) == ("succeeded", 1)
    assert jobs.kinds(job) == ["rescue"]


def test_a_live_run_is_left(rows: InProcess) -> None:
    relayed(status="running", token=uuid.uuid4(), lease_at=future())
    assert rows.sweep().idle


@pytest.mark.servers
def test_rows_that_another_sweeper_or_a_run_holds_are_skipped(stack: Stack, idle_queue: str) -> None:
    with override_settings(RELIABLE_JOBS={**stack.settings, "DISPATCH": "relay"}):
        held, free = (stack.job(tasks.effect.delay(name)) for name in ("held", "free"))
        lost = stack.job(tasks.effect.delay("lost"))
    Job.objects.filter(pk=lost.pk).update(status="running", token=uuid.uuid4(), lease_at=past())
    other = Transaction(lambda: list(Job.objects.filter(pk__in=[held.pk, lost.pk]).lock()))
    report = sweeper.sweep(app)
    assert (report.published, report.rescued) == (1, 0)
    assert now(free).sends == 1
    other.end()
    report = sweeper.sweep(app)
    assert (report.published, report.rescued) == (1, 1)


@pytest.mark.servers
@pytest.mark.promise("I8")
def test_sweepers_side_by_side_send_each_row_once(stack: Stack, idle_queue: str) -> None:
    from django.db import connections

    with override_settings(RELIABLE_JOBS={**stack.settings, "DISPATCH": "relay", "PUBLISH_WINDOW": 7, "GRACE": 600}):
        with transaction.atomic():
            for n in range(60):
                tasks.effect.delay(str(n))

        def run() -> None:
            sweeper.sweep(app)
            connections.close_all()

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ids = [message.headers["id"] for message in stack.take_messages()]
    assert len(ids) == len(set(ids)) == 60


@pytest.mark.servers
@pytest.mark.promise("I7")
def test_a_message_without_an_exchange_does_not_hold_up_the_others(stack: Stack, idle_queue: str) -> None:
    good, bad = stack.row_only(tasks.effect, "good"), stack.row_only(tasks.effect, "bad")
    envelope = bad.envelope.replace('"exchange": ""', '"exchange": "no-such-exchange"')
    assert envelope != bad.envelope
    Job.objects.filter(pk=bad.pk).update(envelope=envelope)
    assert sweeper.sweep(app).published == 1
    assert (now(good).sends, now(bad).sends) == (1, 1)
    (event,) = bad.events.all()
    assert (event.kind, "no-such-exchange" in event.detail) == ("unroutable", True)


# --- more than one database -----------------------------------------------------------------------------------------


def test_every_database_that_holds_jobs_is_swept(jobs: InProcess, second_database: str) -> None:
    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        tasks.effect.delay("here")
        tasks.effect.apply_async(("there",), using="second")
    assert databases.aliases() == ["default", "second"]
    assert jobs.sweep().published == 2
    assert {message.headers[HEADER]["using"] for message in jobs.take()} == {"default", "second"}


# --- declared querysets (C4, C6) ------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "_declared", [])


def declare(**options: Any) -> None:
    ensure_jobs(tasks.effect, lambda: Parent.objects.order_by("pk"), args=lambda row: (row.name,), **options)


def test_every_row_of_a_declared_queryset_gets_its_job_once(jobs: InProcess, fresh: None) -> None:
    for name in ("one", "two"):
        Parent.objects.create(name=name)
    declare(every=0)
    assert jobs.sweep().found == 2
    assert jobs.sweep().found == 0
    jobs.finish()
    assert jobs.sweep().found == 0, "the key is taken for ever"
    Parent.objects.create(name="three")
    assert jobs.sweep().found == 1
    jobs.finish()
    assert [jobs.effects(name) for name in ("one", "two", "three")] == [1, 1, 1]


def test_a_declared_queryset_is_looked_at_no_oftener_than_asked(rows: InProcess, fresh: None) -> None:
    declare(every=60)
    Parent.objects.create(name="one")
    assert sweep_declared(now=1000) == 1
    Parent.objects.create(name="two")
    assert sweep_declared(now=1059) == 0
    assert sweep_declared(now=1061) == 1


def test_a_look_takes_no_more_than_it_may_and_the_next_goes_on(rows: InProcess, fresh: None) -> None:
    for n in range(5):
        Parent.objects.create(name=str(n))
    declare(every=0, limit=2)
    assert [sweep_declared(now=n) for n in range(4)] == [2, 2, 1, 0]


def test_rows_at_the_front_that_have_their_job_do_not_hide_those_behind(
    rows: InProcess, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "_PAGE", 2)
    for n in range(5):
        Parent.objects.create(name=str(n))
    declare(every=0, limit=1)
    assert [sweep_declared(now=n) for n in range(6)] == [1, 1, 1, 1, 1, 0]


def test_a_declared_queryset_that_raises_does_not_stop_the_others(
    rows: InProcess, fresh: None, caplog: pytest.LogCaptureFixture
) -> None:
    ensure_jobs(tasks.add, lambda: User.objects.filter(pk="no number"), every=0)
    declare(every=0)
    Parent.objects.create(name="one")
    assert rows.sweep().found == 1
    assert "tests.testapp.tasks.add" in caplog.text


def test_a_task_that_is_not_reliable_can_not_be_declared(fresh: None) -> None:
    with pytest.raises(TypeError, match="wants a ReliableTask"):
        ensure_jobs(app.tasks["celery.backend_cleanup"], Parent.objects.all)


def test_c4_every_declaration_of_a_loop_counts(jobs: InProcess, fresh: None) -> None:
    def declare(name: str) -> None:
        ensure_jobs(tasks.effect, lambda: Parent.objects.filter(name=name), args=lambda row: (row.name,))

    for name in ("a", "b", "c"):
        Parent.objects.create(name=name)
        declare(name)
    for name in ("d", "e"):
        Parent.objects.create(name=name)
        ensure_jobs(tasks.effect, functools.partial(Parent.objects.filter, name=name), args=lambda row: (row.name,))
    assert sweep_declared(now=10.0**9) == 5
    assert sweep_declared(now=2 * 10.0**9) == 0
    jobs.finish()
    assert [jobs.effects(name) for name in "abcde"] == [1] * 5


@pytest.mark.parametrize("key", [{}, {"key": lambda row: row.pk}, {"key": lambda row: str(row.pk)}])
def test_c6_the_recipe_of_the_how_to_and_ensure_jobs_make_one_job(jobs: InProcess, fresh: None, key: Any) -> None:
    parent = Parent.objects.create(name="one mail")
    ensure_jobs(tasks.effect, lambda: Parent.objects.all(), args=lambda row: (row.name,), **key)
    tasks.effect.apply_async((parent.name,), key=parent.pk, key_forever=True)
    assert sweep_declared(now=10.0**9) == 0
    jobs.finish()
    assert sweep_declared(now=2 * 10.0**9) == 0
    jobs.finish()
    assert jobs.effects("one mail") == 1


def test_c6_the_how_to_pages_view_and_declaration_make_one_job(jobs: InProcess, fresh: None) -> None:
    """Its two recipes are copied together: one key, so one mail."""
    page = (Path(__file__).resolve().parent.parent.parent / "docs/how-to.md").read_text()
    recipe = page.partition("\n## Find rows that lack their job\n")[2].partition("\n## ")[0]
    user = Parent.objects.create(name="user")
    users = SimpleNamespace(objects=SimpleNamespace(filter=lambda **conditions: Parent.objects.all()))
    names = {"ensure_jobs": ensure_jobs, "send_verification": tasks.effect, "User": users, "user": user}
    (declaration,) = re.findall(r"^ *(ensure_jobs\(.+\))$", recipe, re.M)
    (call,) = re.findall(r"^send_verification\..+$", recipe, re.M)
    eval(declaration, names)
    job_id = eval(call, names).id
    assert {eval(other, names).id for other in re.findall(r"^send_verification\..+$", page, re.M)} == {job_id}
    assert sweep_declared(now=10.0**9) == 0
    jobs.finish()
    assert sweep_declared(now=2 * 10.0**9) == 0, "the key is kept as long as the sweeper's"
    assert jobs.effects(str(user.pk)) == 1


# --- the loop -------------------------------------------------------------------------------------------------------


class Ticking:
    """A loop whose sweeps are counted instead of done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fail: bool = False) -> None:
        self.ticks = 0
        self.ticked = threading.Semaphore(0)

        def sweep(app: Any, *, actor: str) -> None:
            self.ticks += 1
            self.ticked.release()
            if fail:
                raise RuntimeError("no database")

        monkeypatch.setattr(sweeper, "sweep", sweep)


@pytest.fixture
def loops() -> Iterator[list[SweepLoop]]:
    started: list[SweepLoop] = []
    yield started
    for loop in started:
        loop.stop()


def test_the_loop_sweeps_at_its_interval_and_ends_when_told(
    monkeypatch: pytest.MonkeyPatch, loops: list[SweepLoop]
) -> None:
    ticking = Ticking(monkeypatch)
    loop = SweepLoop(app, actor="test", interval=0.01, keep_connections=True)
    loops.append(loop)
    loop.start()
    assert all(ticking.ticked.acquire(timeout=10) for _ in range(3))
    loop.stop()
    assert not loop._thread.is_alive()
    ended = ticking.ticks
    assert not ticking.ticked.acquire(timeout=0.05) or ticking.ticks == ended


def test_a_loop_without_an_interval_waits_to_be_woken(monkeypatch: pytest.MonkeyPatch, loops: list[SweepLoop]) -> None:
    ticking = Ticking(monkeypatch)
    loop = SweepLoop(app, actor="test", interval=None, keep_connections=True)
    loops.append(loop)
    loop.start()
    assert not ticking.ticked.acquire(timeout=0.05)
    loop.wake()
    assert ticking.ticked.acquire(timeout=10)


def test_a_sweep_that_fails_does_not_end_the_loop(
    monkeypatch: pytest.MonkeyPatch, loops: list[SweepLoop], caplog: pytest.LogCaptureFixture
) -> None:
    ticking = Ticking(monkeypatch, fail=True)
    loop = SweepLoop(app, actor="test", interval=0.01, keep_connections=True)
    loops.append(loop)
    loop.start()
    assert all(ticking.ticked.acquire(timeout=10) for _ in range(3))
    assert "no database" in caplog.text


def test_what_is_to_be_done_before_a_sweep_is_done_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(sweeper, "sweep", lambda app, actor: order.append("sweep"))
    SweepLoop(app, actor="test", interval=None, keep_connections=True, before=lambda: order.append("before")).once()
    assert order == ["before", "sweep"]
