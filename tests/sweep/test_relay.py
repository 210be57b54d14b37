"""The relay: a process that publishes what requests only wrote, woken by their commits."""

from __future__ import annotations

import datetime
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import InterfaceError, connection, transaction
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.dispatch import notify, on_commit
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.models import Job, PauseKind
from reliable_jobs.sweep import pruner, relay, sweeper
from reliable_jobs.sweep.relay import Relay
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import PATIENCE, Process, Stack, wait_until
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs = inprocess.jobs


@pytest.fixture
def by_relay(settings: Any) -> None:
    settings.RELIABLE_JOBS = {"DISPATCH": "relay"}


@pytest.fixture
def alone(settings: Any) -> None:
    """Nothing but the test's own thread writes: in SQLite's memory a second writer is refused at once."""
    settings.RELIABLE_JOBS = {"PRESENCE_INTERVAL": 0}


@pytest.fixture(autouse=True)
def nobody_was_woken_lately() -> None:
    notify._last.clear()


def test_draining_publishes_everything_that_is_due_and_nothing_else(jobs: InProcess, by_relay: None) -> None:
    for number in range(3):
        tasks.effect.delay(f"due {number}")
    tasks.effect.apply_async(("later",), countdown=600)
    assert not jobs.take()
    call_command("reliable_jobs_relay", "--drain")
    assert len(jobs.take()) == 3
    assert Job.objects.filter(sends=0).count() == 1


def test_draining_fails_where_the_broker_is_away(jobs: InProcess, by_relay: None) -> None:
    tasks.effect.delay("due")
    nobody_listens = inprocess.broker("amqp://guest:guest@127.0.0.1:9//", "away")
    with nobody_listens, pytest.raises(CommandError, match="Not all due jobs could be published; 0 were"):
        call_command("reliable_jobs_relay", "--drain")
    assert Job.objects.get().sends == 0
    call_command("reliable_jobs_relay", "--drain")
    assert len(jobs.take()) == 1


def test_draining_fails_where_a_job_was_not_confirmed(jobs: InProcess, by_relay: None) -> None:
    for number in range(2):
        tasks.effect.delay(f"due {number}")
    unreadable = Job.objects.order_by("due_at").first()
    assert unreadable is not None
    Job.objects.filter(pk=unreadable.pk).update(envelope="{}")
    with pytest.raises(CommandError, match="Not all due jobs could be published; 1 were"):
        call_command("reliable_jobs_relay", "--drain")
    assert len(jobs.take()) == 1, "the others go out"


def test_draining_goes_on_after_a_batch_that_was_not_confirmed(
    jobs: InProcess, by_relay: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        tasks.effect.delay(f"due {number}")
    publish, batches = publisher(app).publish, []

    def at_first_one_alone(messages: Any, **options: Any) -> Any:
        batches.append(len(messages))
        if len(batches) > 1:
            return publish(messages, **options)
        confirms = publish(messages[:1], **options)
        confirms.error = ConnectionResetError("in mid-batch")
        return confirms

    monkeypatch.setattr(publisher(app), "publish", at_first_one_alone)
    call_command("reliable_jobs_relay", "--drain")
    assert batches == [3, 2]
    assert len(jobs.take()) == 3


def test_a_relay_that_was_stopped_begins_no_pruning(
    jobs: InProcess, by_relay: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    running = Relay(app)
    tasks.effect.delay("due")
    monkeypatch.setattr(sweeper, "sweep", lambda app, **_: running.stop() or sweeper.Report())
    monkeypatch.setattr(pruner, "prune", lambda limit: done.append("prune"))
    assert not running.drain(), "it can't tell what is left"
    assert not done


def test_a_relay_sweeps_and_prunes_too(jobs: InProcess, by_relay: None, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(sweeper, "sweep", lambda app, actor, **_: done.append(f"sweep by {actor}"))
    monkeypatch.setattr(pruner, "prune", lambda limit: done.append("prune") or 0)
    running = Relay(app)
    for _ in range(3):
        running._round()
    assert done == ["sweep by relay", "prune"]


def test_a_relay_checks_its_connections_once_a_second(
    jobs: InProcess, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[str] = []
    monkeypatch.setattr(relay, "close_old_connections", lambda: checks.append("check"))
    running = Relay(app)
    for _ in range(3):
        running._round()
    assert checks == ["check"]
    running._check_at -= relay.CHECK_EVERY
    running._round()
    assert checks == ["check"] * 2


def test_a_relay_outlives_a_connection_that_cannot_be_closed(
    jobs: InProcess, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise InterfaceError("it has died")

    monkeypatch.setattr(relay, "close_old_connections", fails)
    running = Relay(app)
    running._round()
    assert running.failed


def test_a_relay_prunes_in_small_steps_between_its_looks(
    jobs: InProcess, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds of pruning, each hour, would be two seconds in which nothing is published."""
    old, pauses = [relay.PRUNE_LIMIT + 5], []
    looks: list[str] = []
    running = Relay(app)

    def prune(limit: int) -> int:
        looks.append("prune")
        gone = min(limit, old[0])
        old[0] -= gone
        return gone

    def pause() -> None:
        pauses.append(list(looks))
        running.stop()

    monkeypatch.setattr(pruner, "prune", prune)
    monkeypatch.setattr(sweeper, "publish_due", lambda *args: looks.append("look"))
    monkeypatch.setattr(running, "_pause", pause)
    running.run()
    assert old == [0]
    assert pauses == [["look", "prune"] * 2]


def test_a_pruning_that_fails_is_tried_again_within_minutes(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one database's: the others had been left a thousand jobs an hour."""

    def fails(limit: int) -> int:
        raise RuntimeError("of one database")

    monkeypatch.setattr(pruner, "prune", fails)
    running = Relay(app)
    running._round()
    assert not running._prunes_on
    assert running._prune_at - time.monotonic() <= relay.PRUNE_AGAIN


def test_a_relay_that_prunes_rests_where_the_broker_is_away(
    jobs: InProcess, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    running = Relay(app)

    def away(app: Any, report: sweeper.Report, on_backlog: Any) -> None:
        report.left_due = True

    monkeypatch.setattr(sweeper, "publish_due", away)
    monkeypatch.setattr(sweeper, "sweep", lambda app, **_: None)
    monkeypatch.setattr(pruner, "prune", lambda limit: limit)
    monkeypatch.setattr(running, "_pause", lambda: pauses.append(running._rest) or running.stop())
    running.run()
    assert pauses == [relay.FAILED_PAUSE]


@pytest.mark.promise("I1")
@pytest.mark.parametrize("how", ["drain", "run"])
def test_rows_of_a_paused_task_hold_up_no_other_job(
    jobs: InProcess, settings: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """They fill whole rounds that publish nothing: there is more to do at once all the same."""
    settings.RELIABLE_JOBS = {"DISPATCH": "relay", "SWEEP_LIMIT": 2, "PUBLISH_WINDOW": 2}
    lifecycle.pause(PauseKind.TASK, tasks.fails.name, "default", actor="test")
    for number in range(20):
        tasks.fails.delay(f"paused {number}")
    tasks.effect.delay("live")
    running = Relay(app, interval=600)
    # On SQLite another thread of the relay may have locked it.
    monkeypatch.setattr(running, "_pause", lambda: running.failed or running.stop())
    getattr(running, how)()
    [message] = jobs.take()
    assert message.headers["task"] == tasks.effect.name
    assert Job.objects.filter(paused_at__isnull=False).count() == 20


@pytest.mark.promise("I10")
def test_a_database_that_fails_hides_nothing_of_what_the_others_did(
    jobs: InProcess, by_relay: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay paused in mid-backlog, and had published nothing as far as it knew."""

    def fails_at_last(app: Any, report: sweeper.Report, on_backlog: Any = None, **options: Any) -> None:
        on_backlog()
        report.published, report.more = 3, True
        raise RuntimeError("no such thing")

    monkeypatch.setattr(sweeper, "publish_due", fails_at_last)
    monkeypatch.setattr(sweeper, "sweep", lambda app, **_: None)
    running = Relay(app, interval=600)
    assert running._round() == running.published == 3
    assert running.more
    assert running.failed


def test_a_relay_outlives_what_goes_wrong(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(app: Any, report: Any, on_backlog: Any) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(sweeper, "publish_due", broken)
    assert Relay(app)._round() == 0
    assert "no such thing" in caplog.text


def test_an_idle_relay_pauses_for_its_interval(jobs: InProcess) -> None:
    running = Relay(app, interval=0.3)
    began = time.monotonic()
    running._pause()
    assert time.monotonic() - began >= 0.3


def test_the_longer_there_was_no_work_the_longer_are_the_pauses(jobs: InProcess) -> None:
    running = Relay(app, interval=600)
    pauses = []
    for quiet in (0, relay.ACTIVE / 2, 2 * relay.ACTIVE):
        running._worked_at = time.monotonic() - quiet
        pauses.append(running._longest_pause())
    assert pauses == [notify.NUDGE_EVERY, relay.SHORT, 600]


def test_jobs_that_come_one_by_one_are_sent_together(jobs: InProcess) -> None:
    """A look for each would be all that the relay does. The first after a quiet time does not wait."""
    running = Relay(app, interval=600)

    def pauses(quiet: float, every: float) -> float:
        began = time.monotonic()
        running._looked_at, running._rest = began - quiet, every
        running._wake.set()
        running._pause()
        assert not running._wake.is_set()
        return time.monotonic() - began

    assert pauses(0, every=0.3) >= 0.3
    assert pauses(2 * PATIENCE, every=PATIENCE) < PATIENCE


@pytest.mark.promise("I10")
@pytest.mark.parametrize("left_due", [True, False], ids=["the broker is away", "a database is away"])
def test_a_round_that_failed_is_not_repeated_at_each_commit(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, left_due: bool
) -> None:
    """Each try was a new connection: 90 a second, where web processes committed jobs all the time."""

    def fails(app: Any, report: sweeper.Report, on_backlog: Any) -> None:
        report.left_due = left_due
        if not left_due:
            raise RuntimeError("no such thing")

    monkeypatch.setattr(sweeper, "publish_due", fails)
    monkeypatch.setattr(sweeper, "sweep", lambda app, **_: None)
    running = Relay(app, interval=600)
    running._round()
    began = time.monotonic()
    running._wake.set()
    running._pause()
    assert time.monotonic() - began >= relay.FAILED_PAUSE - 0.1


def test_a_look_that_found_nothing_is_followed_by_another_one(jobs: InProcess) -> None:
    """The process that asked for it keeps silent for a moment, and may have committed more."""
    running = Relay(app, interval=600)
    running._wake.set()
    running._pause()
    assert running._round() == 0
    assert running._longest_pause() == notify.NUDGE_EVERY
    running._pause()
    assert running._longest_pause() == 600


def test_without_an_app_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliable_jobs.management.base.configured_app", lambda: None)
    with pytest.raises(CommandError, match="No Celery app"):
        call_command("reliable_jobs_relay", "--drain")


@pytest.mark.parametrize("enqueue", [lambda: tasks.effect.delay("x"), lambda: tasks.effect.bulk_delay([("x",)] * 3)])
def test_a_commit_wakes_the_relays_and_a_rollback_does_not(
    jobs: InProcess, by_relay: None, monkeypatch: pytest.MonkeyPatch, enqueue: Any
) -> None:
    nudged: list[str] = []
    monkeypatch.setattr(notify, "nudge", nudged.append)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        enqueue()
        raise ZeroDivisionError
    assert not nudged
    with transaction.atomic():
        enqueue()
        assert not nudged
    assert nudged == ["default"]


@pytest.mark.servers
@pytest.mark.promise("I1")
def test_who_spoke_while_the_relay_was_deaf_is_heard(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its start, and after its connection was cut."""
    heard = threading.Semaphore(0)
    ear = notify.Ear("default", heard.release)
    monkeypatch.setattr(ear._stop_event, "wait", lambda seconds: None)
    ear.start()
    try:
        assert heard.acquire(timeout=PATIENCE)
        wait_until(lambda: listeners() == 1, "it listens")
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
            )
        assert heard.acquire(timeout=PATIENCE)
    finally:
        ear.stop()


def relay_process(stack: Stack, *options: str) -> Process:
    return stack.script(
        f"""
from django.core.management import call_command
call_command("reliable_jobs_relay", *{list(options)!r})
"""
    )


def notifications(seconds: float, act: Any) -> int:
    """How many NOTIFYs this database's listeners got while ``act`` ran."""
    raw = connection.connection
    connection.ensure_connection()
    with connection.cursor() as cursor:
        cursor.execute(f"LISTEN {notify.CHANNEL}")
        raw = connection.connection
        act()
        return sum(1 for _ in raw.notifies(timeout=seconds))


@pytest.mark.servers
@pytest.mark.promise("I1")
def test_a_process_speaks_up_once_for_many_commits(
    stack: Stack, idle_queue: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.RELIABLE_JOBS = {**stack.settings, "DISPATCH": "relay"}
    monkeypatch.setattr(notify, "NUDGE_EVERY", 10 * PATIENCE)  # however long these commits take

    def act() -> None:
        for number in range(20):
            tasks.effect.delay(f"one of many {number}")

    assert notifications(0.3, act) == 1


@pytest.mark.servers
@pytest.mark.promise("I2")
def test_a_relay_is_woken_by_a_commit_long_before_it_would_look(stack: Stack, settings: Any) -> None:
    settings.RELIABLE_JOBS = {**stack.settings, "DISPATCH": "relay"}
    with stack.own_queue():
        stack.worker()
        running = relay_process(stack, "--interval", "600")
        running.wait_for_line("Relay is ready")
        wait_until(lambda: listeners() >= 1, "the relay listens")
        for number in range(3):
            stack.ends(tasks.effect.delay(f"woken {number}"), seconds=PATIENCE)
        running.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: not running.alive, "the relay ends when told")
        assert running.popen.returncode == 0
        assert "Published 3 job(s)." in running.log


@pytest.mark.servers
def test_a_relay_keeps_its_session_from_one_look_to_the_next(stack: Stack, idle_queue: str) -> None:
    """With Django's own CONN_MAX_AGE of 0. To connect takes longer than to look."""
    if connection.vendor != "postgresql":
        pytest.skip("sessions of PostgreSQL")
    relay_process(stack, "--interval", "0.05").wait_for_line("Relay is ready")

    def looks_again() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND query LIKE %s AND query_start > backend_start + interval '0.5 s'",
                ['%FROM "reliable_jobs_job"%'],
            )
            return bool(cursor.fetchone()[0])

    wait_until(looks_again, "a session looks at the table half a second after it began", 20)


def listeners() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
        )
        return int(cursor.fetchone()[0])


@pytest.fixture
def backlog(stack: Stack, settings: Any) -> Iterator[None]:
    """100 due rows, in windows of ten."""
    settings.RELIABLE_JOBS = {**stack.settings, "DISPATCH": "relay", "PUBLISH_WINDOW": 10}
    with stack.own_queue():
        tasks.effect.bulk_delay((f"backlog {n}",) for n in range(100))
        yield


@pytest.mark.servers
@pytest.mark.promise("I8")
def test_two_threads_of_a_relay_share_a_backlog_and_send_no_job_twice(
    stack: Stack, backlog: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, both = sweeper._publish, threading.Barrier(2, timeout=PATIENCE)
    windows: dict[str, list[uuid.UUID]] = {}

    def together(app: Any, alias: str, sent: list[Job], report: Any) -> Any:
        mine = windows.setdefault(threading.current_thread().name, [])
        if not mine:
            both.wait()  # each has taken rows before either has published any
        mine += [job.pk for job in sent]
        return publish(app, alias, sent, report)

    monkeypatch.setattr(sweeper, "_publish", together)
    draining = Relay(app)
    assert draining.drain()
    assert len(windows) == 2
    ids = [job_id for mine in windows.values() for job_id in mine]
    assert len(ids) == len(set(ids)) == draining.published == 100
    assert set(Job.objects.values_list("sends", flat=True)) == {1}
    wait_until(lambda: stack.depth() == 100, "a message for each job")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("reliable_jobs-relay")]
    tasks.effect.delay("one more")
    assert draining.drain()
    assert draining.published == 101


@pytest.mark.servers
@pytest.mark.promise("I2")
def test_a_relay_that_gets_no_second_thread_publishes_by_itself(
    stack: Stack, backlog: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(relay.concurrent.futures.ThreadPoolExecutor, "submit", no_room)
    draining = Relay(app)
    assert draining.drain()
    assert draining.published == 100
    assert "can't start new thread" in caplog.text


@pytest.mark.servers
@pytest.mark.promise("I2")
def test_an_error_in_the_second_thread_of_a_relay_is_logged_and_made_good(
    stack: Stack, backlog: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish, second_at_work = sweeper._publish, threading.Event()

    def broken(app: Any, alias: str, sent: list[Job], report: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            second_at_work.set()
            raise RuntimeError("no such thing")
        assert second_at_work.wait(PATIENCE)  # or the first might be through with all before it begins
        return publish(app, alias, sent, report)

    monkeypatch.setattr(sweeper, "_publish", broken)
    assert not Relay(app).drain()
    assert "no such thing" in caplog.text
    stack.worker()
    # Counted and not published: looked at after their grace.
    Job.objects.unfinished().update(check_at=timezone.now() - datetime.timedelta(seconds=1))
    monkeypatch.undo()
    stack.all_end(sweeping=True, seconds=2 * PATIENCE)


@pytest.mark.servers
@pytest.mark.promise("I2")
def test_relays_killed_at_work_leave_every_job_to_the_next_once(stack: Stack, settings: Any) -> None:
    settings.RELIABLE_JOBS = {**stack.settings, "DISPATCH": "relay"}
    with stack.own_queue():
        tasks.effect.bulk_delay((f"relayed {n}",) for n in range(1200))
        first, second = relay_process(stack), relay_process(stack)
        wait_until(lambda: Job.objects.filter(sends__gt=0).exists(), "some are on their way")
        first.kill9()
        second.kill9()
        stack.worker(concurrency=2)
        # What the killed relays had counted and perhaps not published is looked at after its grace.
        third = relay_process(stack)
        wait_until(lambda: not Job.objects.unfinished().filter(sends=0).exists(), "all have been sent", PATIENCE)
        Job.objects.unfinished().filter(check_at__gt=timezone.now()).update(
            check_at=timezone.now() - datetime.timedelta(seconds=1)
        )
        stack.all_end(sweeping=True, seconds=2 * PATIENCE)
        assert third.alive
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*), count(DISTINCT name) FROM testapp_effect WHERE name LIKE 'relayed %'")
            assert cursor.fetchone() == (1200, 1200)


@pytest.mark.servers
@pytest.mark.promise("I1")
def test_a_database_without_notify_is_polled(stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "nudge", lambda alias: None)
    tasks.effect.bulk_delay((f"polled {n}",) for n in range(on_commit.MAX_ON_COMMIT + 1))
    relay_process(stack, "--interval", "0.2").wait_for_line("Relay is ready")
    wait_until(lambda: not Job.objects.filter(sends=0).exists(), "all are sent")
