"""How fast a backlog is published, and how little is sent again where nobody answers."""

from __future__ import annotations

import datetime
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db.models import F
from django.test import Client, override_settings
from django.urls import reverse

from reliable_jobs.dispatch import publisher as publisher_module
from reliable_jobs.dispatch.publisher import Publisher, publisher
from reliable_jobs.models import Job
from reliable_jobs.sweep import statistics, sweeper
from reliable_jobs.sweep.loop import SweepLoop
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import PATIENCE, Stack, wait_until
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs = inprocess.jobs
rows = inprocess.rows


def unsent(count: int) -> None:
    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        tasks.effect.bulk_delay([(str(n),) for n in range(count)])


def pass_time(seconds: float) -> None:
    """For every unfinished job, without waiting."""
    gap = datetime.timedelta(seconds=seconds)
    Job.objects.unfinished().update(due_at=F("due_at") - gap, check_at=F("check_at") - gap)


# --- a backlog --------------------------------------------------------------------------------------------------------


class Rounds:
    """Sweeps are counted, and each of them finds more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, more: int) -> None:
        self.count, self.more = 0, more
        self.did = threading.Condition()
        monkeypatch.setattr(sweeper, "sweep", self.sweep)
        monkeypatch.setattr(statistics, "roll_when_due", lambda: None)

    def sweep(self, app: Any, actor: str, report: sweeper.Report) -> None:
        with self.did:
            self.count += 1
            self.did.notify_all()
        report.published, report.more = 1, self.count <= self.more

    def reach(self, count: int) -> bool:
        with self.did:
            return self.did.wait_for(lambda: self.count >= count, timeout=PATIENCE)


@pytest.mark.parametrize("interval", [3600.0, None], ids=["beside a worker", "in beat"])
def test_c22_a_round_that_met_its_limit_is_followed_by_the_next_at_once(
    monkeypatch: pytest.MonkeyPatch, interval: float | None
) -> None:
    rounds = Rounds(monkeypatch, more=5)
    loop = SweepLoop(app, actor="test", interval=interval, keep_connections=True)
    loop.start()
    loop.wake()
    assert rounds.reach(6)
    loop.stop()
    assert not loop._thread.is_alive()


def test_c22_a_loop_in_a_backlog_ends_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, more=10**9)
    loop = SweepLoop(app, actor="test", interval=3600.0, keep_connections=True)
    loop.start()
    assert rounds.reach(3)
    loop.stop()
    assert not loop._thread.is_alive()


def test_c22_a_failing_revocation_keeps_no_sweep_from_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, more=0)
    loop = SweepLoop(app, actor="test", interval=None, keep_connections=True, before=lambda: 1 / 0)
    loop.once()
    assert rounds.count == 1


@override_settings(RELIABLE_JOBS={"SWEEP_LIMIT": 5, "PUBLISH_WINDOW": 2, "DISPATCH": "relay"})
def test_c22_the_report_says_whether_a_limit_was_met(rows: InProcess) -> None:
    unsent(7)
    assert [rows.sweep().more for _ in range(3)] == [True, False, False]


def test_c22_without_a_broker_a_backlog_is_no_reason_for_another_round(db: None) -> None:
    with inprocess.broker("amqp://127.0.0.1:1//", "nowhere"), override_settings(RELIABLE_JOBS={"SWEEP_LIMIT": 2}):
        unsent(5)
        assert not sweeper.sweep(app).more


# --- nobody answers ---------------------------------------------------------------------------------------------------


@pytest.mark.promise("I8")
def test_f5_recovery_is_bounded_over_time(rows: InProcess) -> None:
    """300 jobs, nobody consumes, and the broker can't say so."""
    unsent(300)
    sent = 0
    for _ in range(40):
        rows.sweep()
        sent += len(rows.take())
        pass_time(5)
    assert 300 + 200 <= sent <= 300 * 1.5 + 200


@pytest.mark.promise("I2")
def test_f5_what_was_lost_twice_comes_again_nevertheless(jobs: InProcess) -> None:
    """The bound counts messages that were lost as well: it must not end in silence."""
    with override_settings(RELIABLE_JOBS={"RECOVERY_LIMIT": 4}):
        unsent(20)
        for _ in range(20):  # ten minutes in which all is lost
            jobs.sweep()
            jobs.take()
            pass_time(30)
        for _ in range(60):  # half an hour in which all is well
            jobs.sweep()
            jobs.work()
            pass_time(30)
        assert not Job.objects.unfinished().exists()


@pytest.mark.servers
@pytest.mark.promise("I8")
def test_f5_where_messages_wait_and_nobody_consumes_nothing_more_is_sent(stack: Stack, idle_queue: str) -> None:
    unsent(300)
    for _ in range(40):
        sweeper.sweep(app)
        pass_time(5)
    assert stack.depth() == 300


@pytest.mark.servers
@pytest.mark.promise("I2")
def test_f5_a_queue_that_lost_its_messages_gets_them_again(stack: Stack, idle_queue: str) -> None:
    """Some sites start their workers when messages wait."""
    unsent(3)
    sweeper.sweep(app)
    stack.purge()
    pass_time(60)
    assert sweeper.sweep(app).republished == 3
    assert stack.depth() == 3


# --- who consumes (C20) -----------------------------------------------------------------------------------------------


@pytest.fixture
def boss(stack: Stack) -> Iterator[Client]:
    client = Client()
    user = User.objects.create_superuser("Grace")
    client.force_login(user)
    yield client
    user.delete()


def page_of(client: Client, job: Job) -> str:
    response = client.get(reverse("admin:reliable_jobs_job_change", args=[job.pk]))
    assert response.status_code == 200
    return str(response.context["story"].text)


@pytest.mark.servers
def test_c20_the_page_and_the_status_say_that_nobody_consumes(stack: Stack, idle_queue: str, boss: Client) -> None:
    job = stack.job(tasks.effect.delay("waits"))
    text = page_of(boss, job)
    assert f"to queue '{idle_queue}'. No worker consumes it" in text
    output = io.StringIO()
    with pytest.raises(CommandError, match=f"No worker consumes {idle_queue}") as caught:
        call_command("reliable_jobs_status", stdout=output)
    assert caught.value.returncode == 1
    assert f"Queue {idle_queue}: 1 due, 0 consumers, 1 message(s) ready." in output.getvalue()


@pytest.mark.servers
def test_c20_the_page_and_the_status_say_that_there_is_no_such_queue(
    stack: Stack, idle_queue: str, boss: Client
) -> None:
    job = stack.job(tasks.effect.delay("waits"))
    stack.delete_queue()
    assert f"to queue '{idle_queue}'. The broker has no queue of that name" in page_of(boss, job)
    output = io.StringIO()
    call_command("reliable_jobs_status", stdout=output)  # it may be a routing key
    assert f"Queue {idle_queue}: 1 due, no queue of that name." in output.getvalue()


@pytest.mark.servers
def test_c20_a_queue_with_a_worker_is_in_order(stack: Stack, idle_queue: str, boss: Client) -> None:
    with stack._channel() as channel:
        channel.basic_qos(0, 1, False)
        channel.basic_consume(idle_queue, callback=lambda message: None)
        job = stack.job(tasks.effect.delay("waits"))
        wait_until(lambda: "1 worker consumes it" in page_of(boss, job), "the page says so")
        output = io.StringIO()
        call_command("reliable_jobs_status", "--json", stdout=output)
        assert json.loads(output.getvalue())["queues"][idle_queue]["consumers"] == 1


@pytest.mark.servers
def test_c20_delayed_jobs_need_no_worker_yet(stack: Stack, idle_queue: str) -> None:
    tasks.effect.apply_async(("later",), countdown=600)
    call_command("reliable_jobs_status", stdout=io.StringIO())


@pytest.mark.servers
@pytest.mark.promise("I9")
def test_c20_a_broker_that_does_not_answer_costs_the_page_a_bounded_time(
    stack: Stack, idle_queue: str, boss: Client
) -> None:
    job = stack.job(tasks.effect.delay("waits"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with stack.through(f"amqp://guest:guest@127.0.0.1:{port}//"):
            began = time.monotonic()
            assert "unknown: the broker did not say" in page_of(boss, job)
            assert time.monotonic() - began < 20


@pytest.mark.promise("I9")
def test_c20_a_broker_whose_name_never_resolves_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of the connection bounds that."""
    go_on, ended = threading.Event(), threading.Event()

    def looks_up(app: Any, timeout: float) -> Any:
        go_on.wait(20)
        ended.set()
        raise OSError("no such host")

    monkeypatch.setattr(publisher_module, "Link", looks_up)
    mine = Publisher(app)
    try:
        assert mine.depths(["mail"], timeout=0.05) == {}
        assert not ended.is_set()
    finally:
        go_on.set()
        for thread in threading.enumerate():
            if thread.name == "reliable_jobs-depths":
                thread.join(20)


@pytest.mark.servers
def test_c20_a_queue_that_does_not_exist_is_told_from_an_empty_one(stack: Stack, idle_queue: str) -> None:
    depths = publisher(app).depths(["rj_no_such_queue", idle_queue])
    assert {name: depth.exists for name, depth in depths.items()} == {"rj_no_such_queue": False, idle_queue: True}


# --- a worker in a test -----------------------------------------------------------------------------------------------


@pytest.mark.servers
def test_a18_retries_and_countdowns_run_in_celerys_own_test_worker(stack: Stack, idle_queue: str) -> None:
    """In a process of its own: that worker leaves its logging and its signals' receivers behind."""
    script = stack.script(
        """
        import threading
        from celery.contrib.testing.worker import start_worker
        from reliable_jobs.models import Job
        with start_worker(app, perform_ping_check=False, shutdown_timeout=30):
            later = tasks.effect.apply_async(("later",), countdown=0.5)
            until = time.monotonic() + 150
            while Job.objects.get(pk=later.id).status != "succeeded" and time.monotonic() < until:
                time.sleep(0.05)
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith("reliable_jobs-worker")]
        print("ended", Job.objects.get(pk=later.id).status, left, flush=True)
        """,
        TEST_WORKER_SWEEP_INTERVAL="0.2",
    )
    script.wait_for_line("ended succeeded []")
