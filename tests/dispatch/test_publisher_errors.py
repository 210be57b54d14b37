"""What else may end a publish: a time limit of the task function that publishes, a message that kills its connection, a
process that can start no more threads."""

from __future__ import annotations

import gc
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.db import transaction
from django.test import override_settings

import reliable_jobs
from reliable_jobs.dispatch import publisher as publisher_module
from reliable_jobs.dispatch.publisher import Publisher, publisher
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.sweep import sweeper
from tests.celery_app import app
from tests.dispatch.test_publisher import message
from tests.support import inprocess
from tests.support.errors import Calls
from tests.support.harness import Stack, wait_until
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs = inprocess.jobs
servers = pytest.mark.servers


class Limited(Calls):
    """The soft time limit arrives at one of the package's calls."""

    error = SoftTimeLimitExceeded


@pytest.fixture
def mine(stack: Stack, idle_queue: str) -> Iterator[Publisher]:
    fresh = Publisher(app)
    yield fresh
    fresh.close()


# --- B3 ---------------------------------------------------------------------------------------------------------------


def limited_everywhere(publish: Any, quiet: Any) -> int:
    """At each call of ``publish`` in turn the time limit arrives; all of them reach it. Returns how many there are."""
    publish()
    calls = Limited()
    with calls.watching():
        publish()
    swallowed = []
    for point in range(1, len(calls.names) + 1):
        met = Limited(point)
        try:
            with met.watching():
                publish()
        except SoftTimeLimitExceeded:
            pass
        else:
            # Python itself swallows what is raised in a generator that is closed, and in a finaliser; that of Celery's
            # result tells the backend.
            swallows = ("insert.random_ids", "__del__", "AskedBackend.remove_pending_result")
            if len(met.names) >= point and not met.names[point - 1].endswith(swallows):
                swallowed.append(met.names[point - 1])
        quiet()
    print(f"{len(calls.names)} calls")
    assert not swallowed
    return len(calls.names)


@pytest.mark.promise("I5")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["autocommit", "transaction", "bulk"])
def test_b3_a_time_limit_during_a_publish_reaches_the_function(jobs: InProcess, how: str) -> None:
    def publish() -> None:
        if how == "autocommit":
            tasks.effect.delay("x")
        elif how == "bulk":
            tasks.effect.bulk_delay([("x",), ("y",)])
        else:
            with transaction.atomic():
                tasks.effect.delay("x")

    def quiet() -> None:
        assert not publisher(app)._open, "the broker was blamed"

    assert limited_everywhere(publish, quiet) > 20
    tasks.effect.delay("last")
    assert jobs.take(), "the publisher works on"


@servers
@pytest.mark.promise("I5")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the socket of a link let go of
def test_b3_a_time_limit_while_confirms_are_awaited_drops_the_connection(mine: Publisher, stack: Stack) -> None:
    def publish() -> None:
        mine.publish([message(stack.queue), message(stack.queue)], timeout=10)

    def quiet() -> None:
        assert not mine._open
        for link in mine._idle:
            assert not link.pipeline.open_tags, "a connection with unconfirmed messages is kept"

    assert limited_everywhere(publish, quiet) > 20
    gc.collect()  # those sockets are in cycles with their tracebacks: the next test is not to be told of them
    last = message(stack.queue)
    assert mine.publish([last], timeout=10).confirmed == {last.id}


#: Folders and files of which no task function calls anything.
ELSEWHERE = {
    *("admin", "adopt", "checks", "health", "management", "migrations", "presence", "testing"),
    *("dispatch/remote.py", "sweep/acts.py"),
    *("sweep/loop.py", "sweep/relay.py", "sweep/ensure_jobs.py", "dispatch/notify.py", "dispatch/connect.py"),
    *("worker/parking.py", "worker/requests.py", "worker/revocation.py", "worker/watchdog.py", "task/guards.py"),
    *(
        "run/task_events.py",
        "compat/name.py",
        "run/tracing.py",
        "run/unreported_errors.py",
        "run/bundle_transaction.py",
        "run/delivery.py",
        "run/lease.py",
    ),
}
#: Functions that only sweeps and probes call, threads of their own, or a run whose task function has ended.
AFTERWARDS = {
    "_answers",
    "look",
    "is_cut_off",
    "settle",
    "_first",
    "heartbeat",
    "part_ended",
    "_write_copies",
    "_watch",
}


@pytest.mark.promise("I5")
def test_b3_no_except_on_a_functions_way_swallows_the_time_limit() -> None:
    package = Path(reliable_jobs.__file__).parent
    wrong = []
    for path in package.rglob("*.py"):
        room = path.relative_to(package)
        if {room.parts[0], str(room)} & ELSEWHERE:
            continue
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            if re.search(r"except Exception\b|suppress\(Exception\)", line):
                before = "\n".join(lines[max(0, number - 4) : number - 1])
                owner = [found[1] for one in lines[:number] if (found := re.match(r"\s*(?:async )?def (\w+)", one))][-1]
                if not re.search(r"except .*SoftTimeLimitExceeded", before) and owner not in AFTERWARDS:
                    wrong.append(f"{room}:{number}: {line.strip()}")
    assert not wrong, wrong


# --- B9 ---------------------------------------------------------------------------------------------------------------


@servers
@pytest.mark.promise("I8")
@pytest.mark.parametrize("poison", [{"x": math.nan}, {"x": "y" * 140_000}], ids=["nan", "frame"])
@pytest.mark.parametrize("others", [0, 30])
def test_b9_neighbours_of_a_message_that_kills_its_connection_are_sent(
    mine: Publisher, stack: Stack, poison: Any, others: int
) -> None:
    guilty = message(stack.queue, headers=poison)
    sent = [message(stack.queue) for _ in range(others)]
    sent.insert(others // 2, guilty)
    confirms = mine.publish(sent, timeout=30)
    assert confirms.confirmed == {one.id for one in sent} - {guilty.id}
    assert list(confirms.returned) == [guilty.id]
    assert "closes the connection" in confirms.returned[guilty.id]
    assert confirms.error is None
    assert confirms.tries < 20
    assert not mine._open, "the broker was blamed"


@servers
@pytest.mark.promise("I7")
def test_b9_the_guilty_job_says_why_in_its_history_and_waits_longer(stack: Stack, idle_queue: str) -> None:
    good = [stack.row_only(tasks.effect, f"n{number}") for number in range(5)]
    bad = stack.row_only(tasks.effect, "bad")
    envelope = bad.envelope.replace('"headers": {', '"headers": {"x": NaN, ', 1)
    assert envelope != bad.envelope
    Job.objects.filter(pk=bad.pk).update(envelope=envelope)
    with override_settings(RELIABLE_JOBS={**stack.settings, "GRACE": 600.0}):
        sweeper.sweep(app)
        arrived = [one.headers["id"] for one in stack.take_messages()]
        assert set(arrived) == {str(job.pk) for job in good}
        assert len(arrived) <= 6 * len(good), "copies of the neighbours"
        bad.refresh_from_db()
        assert (bad.status, bad.sends) == ("waiting", 1)
        assert "closes the connection" in JobEvent.objects.get(job=bad, kind="unroutable").detail
        assert sweeper.sweep(app).idle, "it is not tried at every sweep"


# --- B10 --------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I9")
def test_b10_the_breaker_closes_again_though_no_thread_could_be_started(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Publisher(app)
    starts = threading.Thread.start
    refused: list[str] = []

    def refuse(self: threading.Thread) -> None:
        refused.append(self.name)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(publisher_module.threading.Thread, "start", refuse)
    confirms = mine.publish([message(jobs.queue)])
    assert confirms.error is not None
    assert mine.breaker_open
    assert "reliable_jobs-probe" in refused
    monkeypatch.setattr(publisher_module.threading.Thread, "start", starts)
    wait_until(lambda: not mine.breaker_open, "the breaker closes")
    assert mine.publish([message(jobs.queue)]).confirmed
