"""What a worker's pool enforces, and what it must not be run with (FOUND.md, A16 and A17)."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from celery.concurrency import get_implementation, prefork, solo, thread
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone

from reliable_jobs.conf import settings
from reliable_jobs.lifecycle import Claim
from reliable_jobs.models import Job
from reliable_jobs.run import lease, pools, recovery
from reliable_jobs.run.state import Run
from tests.support.harness import Stack, Worker, lines, wait_until
from tests.testapp import tasks
from tests.testapp.models import Parent


class OwnPool(prefork.TaskPool):
    pass


class ForeignPool:
    pass


@contextlib.contextmanager
def running(pool: type | None) -> Iterator[None]:
    with mock.patch.object(pools, "running", pool):
        yield


@pytest.mark.parametrize(
    ("pool", "hard", "soft"),
    [
        (prefork.TaskPool, True, True),
        (OwnPool, True, True),
        (solo.TaskPool, False, False),
        (thread.TaskPool, False, False),
        (get_implementation("gevent"), True, False),
        (ForeignPool, False, False),
    ],
    ids=["prefork", "derived", "solo", "threads", "gevent", "foreign"],
)
def test_a16_which_limits_hold_where(pool: type, hard: bool, soft: bool) -> None:
    assert (pools.enforces_hard_limit(pool), pools.enforces_soft_limit(pool)) == (hard, soft)
    with running(pool):
        shortened = tasks.has_a_limit.run_deadline() == 1 + settings.LEASE
        assert shortened is hard


def test_a16_outside_of_a_worker_prefork_is_assumed() -> None:
    assert pools.enforces_hard_limit()
    assert tasks.has_a_limit.run_deadline() == 1 + settings.LEASE


def test_a16_a_shutdown_after_an_unenforced_limit_is_no_time_limit() -> None:
    tasks.has_a_limit.push_request(reliable_began=-1e6)
    try:
        assert recovery.is_out_of_time(tasks.has_a_limit, SystemExit())
        with running(thread.TaskPool):
            assert not recovery.is_out_of_time(tasks.has_a_limit, SystemExit())
    finally:
        tasks.has_a_limit.pop_request()


@pytest.mark.promise("I6")
def test_a16_the_time_limit_of_the_command_line_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.effect.push_request(reliable_began=-1e6)
    try:
        assert not recovery.is_out_of_time(tasks.effect, SystemExit())
        monkeypatch.setattr(pools, "limits_of_worker", (1.0, None))
        assert recovery.is_out_of_time(tasks.effect, SystemExit())
    finally:
        tasks.effect.pop_request()


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.promise("I4")
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a16_a_limit_that_the_pool_does_not_enforce_ends_no_lease(
    stack: Stack, idle_queue: str, outside: Path, gate: Path, pool: str
) -> None:
    """It ran three times, twice at once, and failed."""
    worker = stack.worker(pool=pool, concurrency=2, LEASE=2.0)
    assert "does not enforce time_limit" in worker.log
    result = tasks.has_a_limit.delay("limited", str(outside), str(gate))
    wait_until(lambda: lines(outside), "it runs")
    job = stack.job(result)
    wait_until(lambda: stack.database_now() > job.due_at + datetime.timedelta(seconds=4), "limit and lease are over")
    stack.sweep()
    gate.touch()
    job = stack.ends(result, sweeping=True)
    assert len(lines(outside)) == 1
    assert job.crashes <= 1


def eventlet_worker(stack: Stack) -> Worker:
    if importlib.util.find_spec("eventlet") is None:
        pytest.skip("eventlet is not installed")
    if importlib.util.find_spec("psycopg_binary") is None and importlib.util.find_spec("psycopg_c") is None:
        pytest.skip("psycopg has no C implementation here")
    return stack.worker(pool="eventlet", concurrency=4, wait=False)


@pytest.mark.servers
@pytest.mark.slow
def test_a17_eventlet_with_a_driver_that_waits_in_c_is_refused(stack: Stack, idle_queue: str) -> None:
    worker = eventlet_worker(stack)
    assert worker.wait() == 1
    assert "PSYCOPG_WAIT_FUNC=wait_selector" in worker.log


@pytest.mark.servers
@pytest.mark.slow
def test_a17_eventlet_as_the_refusal_advises_lets_two_bodies_want_one_row(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSYCOPG_WAIT_FUNC", "wait_selector")
    eventlet_worker(stack).wait_until_ready()
    Parent.objects.create(name="one")
    results = [tasks.locks_two.delay("one", "one") for _ in range(4)]
    for result in results:
        stack.ends(result)


def test_a17_gevent_with_psycopg2_that_waits_in_c_is_refused() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("PostgreSQL only")
    extensions = mock.Mock(get_wait_callback=lambda: None)
    modules = {"psycopg2.extensions": extensions, "psycopg.waiting": None}
    with mock.patch.dict("sys.modules", modules):
        assert "psycogreen" in "".join(pools.blocking_drivers(get_implementation("gevent")))
        assert not list(pools.blocking_drivers(thread.TaskPool))


@pytest.mark.promise("I4")
@pytest.mark.parametrize("error", [OperationalError("away"), RuntimeError("the driver's own")])
def test_a_heartbeat_that_fails_goes_on_and_the_run_logs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Its own thread does not log. Under eventlet a log handler's lock does not work between threads: with 20 runs and
    a database that was restarted the worker hung for good."""
    beats: list[int] = []

    def fails(*args: Any) -> bool:
        beats.append(threading.get_ident())
        raise error

    monkeypatch.setattr(lease.lifecycle, "extend_lease", fails)
    run = Run(Claim(Job(), "default", timezone.now()), "a worker")
    with override_settings(RELIABLE_JOBS={"LEASE": 0.1}), lease.kept_alive(run):
        wait_until(lambda: len(beats) > 2, "it goes on")
    told = [record for record in caplog.records if "could not be extended" in record.message]
    assert [record.thread for record in told] == [threading.get_ident()]
    assert repr(error) in caplog.text


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.promise("I4")
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_a_function_that_never_yields_keeps_its_lease(
    stack: Stack, idle_queue: str, outside: Path, gate: Path, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    """The lease was extended in a greenlet, which had no turn: the job was taken back and run twice at once."""
    monkeypatch.setenv("PSYCOPG_WAIT_FUNC", "wait_selector")
    stack.worker(pool=pool, concurrency=4, LEASE=2.0)
    result = tasks.never_yields.delay("computes", str(outside), str(gate))
    wait_until(lambda: lines(outside), "it runs")
    job = stack.job(result)
    wait_until(lambda: stack.database_now() > job.due_at + datetime.timedelta(seconds=4), "some leases are over")
    stack.worker()
    assert not stack.sweep().rescued
    gate.touch()
    job = stack.ends(result, sweeping=True)
    assert len(lines(outside)) == 1
    assert job.crashes <= 1
    assert stack.kinds(job) == []
