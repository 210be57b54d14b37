"""A worker that stops consuming is noticed and comes back (FOUND.md, kind F)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reliable_jobs.models import JobEvent
from reliable_jobs.worker.watchdog import EXIT_STATUS
from tests.support import consuming
from tests.support.consuming import RABBITMQ, REDIS, Site, survive
from tests.support.harness import Stack, lines, server_urls, wait_until
from tests.support.private_servers import CuttableProxy, PrivateRabbitMQ, PrivateRedis
from tests.testapp import tasks
from tests.testapp.models import Effect

pytestmark = [pytest.mark.servers, pytest.mark.slow]

#: As sites have it.
DEFAULTS = {"GRACE": 15.0, "LEASE": 10.0, "WORKER_SWEEP_INTERVAL": 10.0, "STALL_TIMEOUT": 15.0}
#: For the cells of make test.
QUICK = {"GRACE": 2.0, "LEASE": 2.0, "WORKER_SWEEP_INTERVAL": 1.0, "STALL_TIMEOUT": 3.0}


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.fixture(scope="module")
def _database(django_db_blocker: Any) -> Iterator[Stack]:
    with Stack(*server_urls()).migrated(django_db_blocker) as stack:
        yield stack


def _site(stack: Stack, broker: Any, soak: bool) -> Iterator[Site]:
    stack.broker_url = broker.url
    stack.settings = DEFAULTS if soak else QUICK
    with stack.active(), stack.own_queue(), CuttableProxy(broker.port) as proxy:
        stack.clean()
        yield Site(stack, broker, proxy)
        stack.end_processes(stack.processes)


@pytest.fixture
def rabbitmq(
    _database: Stack, private_rabbitmq: PrivateRabbitMQ, django_db_blocker: Any, request: pytest.FixtureRequest
) -> Iterator[Site]:
    with django_db_blocker.unblock():
        yield from _site(_database, private_rabbitmq, request.node.get_closest_marker("soak") is not None)


@pytest.fixture(scope="module")
def _redis() -> Iterator[PrivateRedis]:
    needs("redis")
    with PrivateRedis(durable=True) as server:
        yield server


@pytest.fixture
def redis(
    _database: Stack, _redis: PrivateRedis, django_db_blocker: Any, request: pytest.FixtureRequest
) -> Iterator[Site]:
    with django_db_blocker.unblock():
        yield from _site(_database, _redis, request.node.get_closest_marker("soak") is not None)


@pytest.mark.soak
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
@pytest.mark.parametrize("fault", RABBITMQ)
def test_matrix_rabbitmq(rabbitmq: Site, fault: str, pool: str) -> None:
    if pool == "gevent":
        needs("gevent")
    function, seconds = RABBITMQ[fault]
    if function is consuming.consumer_timeout:
        with consuming.short_consumer_timeout(rabbitmq.broker):
            print(survive(rabbitmq, pool, function, seconds))
    else:
        print(survive(rabbitmq, pool, function, seconds))


@pytest.mark.soak
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
@pytest.mark.parametrize("fault", REDIS)
def test_matrix_redis(redis: Site, fault: str, pool: str) -> None:
    if pool == "gevent":
        needs("gevent")
    function, seconds = REDIS[fault]
    print(survive(redis, pool, function, seconds))


# --- the faults themselves, short -------------------------------------------------------------------------------------


def test_f1_gevent_whose_ack_failed_in_a_greenlet_consumes_again(rabbitmq: Site) -> None:
    """The ack fails before the main loop reads: kombu then opens a connection on which nobody consumes."""
    needs("gevent")
    worker = rabbitmq.worker("gevent")
    for n in range(3):
        tasks.cuts_off_its_worker.delay(f"cut {n}")
        wait_until(lambda n=n: Effect.objects.filter(name=f"cut {n}").exists(), "it ran")
        rabbitmq.stack.ends(tasks.effect.delay(f"after {n}"))
    assert worker.alive


def test_f2_gevent_connects_again_after_a_broker_that_answered_nothing(rabbitmq: Site) -> None:
    needs("gevent")
    survive(rabbitmq, "gevent", consuming.unanswered, 8, backlog=8)


def test_f_half_open_connections_are_given_up_despite_a_locked_control(rabbitmq: Site) -> None:
    """The broker keeps the old connection, and with it the remote control's queue: exclusive from Celery 5.7 on."""
    worker = rabbitmq.worker("prefork")
    consuming.half_open(rabbitmq, worker, 0)
    swallowed = tasks.effect.delay("swallowed")
    worker.wait_for_line("Its broker connections are closed (time 1 of 3)")
    worker.wait_for_line("Connected to", 2)
    rabbitmq.stack.ends(tasks.effect.delay("after"))
    assert worker.alive
    assert "Frequent restarts" not in worker.log
    event = JobEvent.objects.get(job_id=swallowed.id)
    assert (event.kind, event.actor) == ("rescue", f"{worker.name}@test")


def test_f_a_solo_worker_whose_queue_was_deleted_at_its_start_comes_back(rabbitmq: Site) -> None:
    """Celery swallows the broker's cancellation in that moment: connected, "ready", and no consumer."""
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    worker = rabbitmq.worker("solo", *quiet, app="tests.worker.queue_gone")
    worker.wait_for_line("The queue is gone, and the broker has said so.")
    rabbitmq.stack.ends(tasks.effect.delay("after"))
    assert worker.alive
    assert "Its broker connections are closed (time 1 of 3)" in worker.log


def test_f_a_worker_that_does_not_come_back_ends_with_a_status_of_its_own(rabbitmq: Site) -> None:
    worker = rabbitmq.worker("threads", STALL_TIMEOUT=0.5)
    rabbitmq.stack.ends(tasks.stops_its_workers_loop.delay(600))
    # The first ones may still be taken: the loop stops within a second.
    wait_until(lambda: tasks.effect.delay("waits") and not worker.alive, "the process ends", every=2.0)
    assert worker.wait() == EXIT_STATUS
    assert "Reconnecting 3 times did not help" in worker.log
    worker.start()
    rabbitmq.stack.all_end()


def test_f_a_worker_that_is_idle_beside_a_busy_one_is_left_alone(rabbitmq: Site, outside: Path, gate: Path) -> None:
    """An atomic job's first run is a row that waits, and is locked; the idle worker has nothing to miss."""
    busy = rabbitmq.worker("threads")
    for n in range(consuming.CONCURRENCY):
        tasks.gated.delay(f"held {n}", str(outside), str(gate))
    wait_until(lambda: len(lines(outside)) == consuming.CONCURRENCY, "all run")
    idle = rabbitmq.worker("threads", STALL_TIMEOUT=0.5)
    looks = rabbitmq.proxy.accepted
    wait_until(lambda: rabbitmq.proxy.accepted >= looks + 2, "the idle one has looked several times")
    gate.touch()
    rabbitmq.stack.all_end()
    for worker in (busy, idle):
        assert worker.alive
        assert "broker connections are closed" not in worker.log
