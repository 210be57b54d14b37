"""I5: an outage costs time, never an attempt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.db import connection, transaction
from django.test import override_settings
from kombu import Exchange

from reliable_jobs.clock import Now
from reliable_jobs.dispatch.publisher import Publisher, publisher
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.support.harness import PATIENCE, Stack, lines, wait_until
from tests.support.private_servers import CuttableProxy, PrivatePostgres, PrivateRabbitMQ
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.promise("I5")]


def unharmed(stack: Stack, *jobs: Any) -> None:
    for job in jobs:
        assert (job.status, job.failures, job.crashes) == ("succeeded", 0, 0)


@pytest.mark.promise("I2")
@pytest.mark.promise("I9")
@pytest.mark.parametrize("fault", ["refused", "never answers"])
def test_a_broker_away_at_commit_delays_the_job_and_not_the_request(
    stack: Stack, idle_queue: str, broker_proxy: CuttableProxy, fault: str
) -> None:
    worker = stack.worker()
    with stack.through(broker_proxy.url(stack.broker_url)):
        tasks.effect.delay("before")  # a kept connection, so that its death is met too
        if fault == "refused":
            broker_proxy.refuse(True)
            broker_proxy.cut()
        else:
            broker_proxy.blackhole(True)
        began = time.monotonic()
        with transaction.atomic():
            results = [tasks.effect.delay(f"number {i}") for i in range(3)]
        took = time.monotonic() - began
        assert took < 5.0
        assert publisher(app).breaker_open
        with mock.patch.object(Publisher, "publish") as tried:
            results.append(tasks.effect.delay("number 3"))
        assert not tried.called, "the breaker is open, and the request tried all the same"
        stack.sweep()
        assert not any(stack.job(result).is_final for result in results)
        broker_proxy.blackhole(False)
        broker_proxy.refuse(False)
        unharmed(stack, *stack.all_end(sweeping=True))
    assert [stack.effects(f"number {i}") for i in range(4)] == [1] * 4
    assert worker.alive


@pytest.mark.promise("I2")
def test_a_message_purged_from_the_broker_is_sent_again(stack: Stack, idle_queue: str) -> None:
    with override_settings(RELIABLE_JOBS={**stack.settings, "GRACE": 60.0}):  # one more message each, no third
        results = [tasks.effect.delay(f"number {i}") for i in range(5)]
        assert stack.purge() == 5
        Job.objects.update(check_at=Now())
        stack.worker()
        unharmed(stack, *stack.all_end(sweeping=True))
    assert [stack.effects(f"number {i}") for i in range(len(results))] == [1] * 5
    assert all(stack.job(result).sends == 2 for result in results)


@pytest.mark.promise("I2")
@pytest.mark.parametrize("kept_connection", [True, False])
def test_a_deleted_queue_is_declared_again_and_its_messages_sent_again(
    stack: Stack, idle_queue: str, kept_connection: bool
) -> None:
    with override_settings(RELIABLE_JOBS={**stack.settings, "GRACE": 60.0}):  # one more message, no third
        lost = tasks.effect.delay("lost with the queue")
        stack.delete_queue()
        if not kept_connection:
            publisher(app).close()
        tasks.effect.delay("after")
        assert stack.depth() == 1, "the message was returned and its queue not declared again"
        Job.objects.filter(pk=lost.id).update(check_at=Now())
        stack.worker()
        unharmed(stack, *stack.all_end(sweeping=True))
    assert (stack.effects("lost with the queue"), stack.effects("after")) == (1, 1)
    assert stack.job(lost).sends == 2


@pytest.mark.promise("I7")
def test_a_returned_message_is_visible_and_goes_out_once_it_is_bound(stack: Stack, idle_queue: str) -> None:
    with stack._channel() as channel:
        exchange = Exchange(f"x-{stack.queue}", type="direct", durable=False, auto_delete=True, channel=channel)
        exchange.declare()
        result = tasks.effect.apply_async(
            ("routed in the end",), exchange=exchange.name, routing_key=stack.queue, queue=None
        )
        assert stack.depth() == 0
        wait_until(lambda: stack.sweep() and stack.kinds(stack.job(result)), "the sweeper met the return")
        assert stack.kinds(stack.job(result))[0] == "unroutable"
        assert stack.job(result).status == "waiting"
        channel.queue_bind(stack.queue, exchange.name, stack.queue)
        stack.worker()
        job = stack.ends(result, sweeping=True)
    assert (job.failures, stack.effects("routed in the end")) == (0, 1)


@pytest.mark.promise("I7")
def test_a_missing_exchange_is_visible_and_hurts_no_other_job(stack: Stack, idle_queue: str) -> None:
    with transaction.atomic():
        first = tasks.effect.delay("neighbour")
        lost = tasks.effect.apply_async(("never",), exchange=f"none-{stack.queue}", routing_key="nowhere", queue=None)
        second = tasks.effect.delay("neighbour")
    stack.worker()  # while nobody consumes what waits in its queue, nothing is sent again
    wait_until(lambda: stack.sweep() and stack.kinds(stack.job(lost)), "the sweeper met the return")
    assert stack.kinds(stack.job(lost))[0] == "unroutable"
    stack.ends(first, sweeping=True)
    stack.ends(second, sweeping=True)
    assert stack.effects("neighbour") == 2
    assert (stack.job(lost).status, stack.job(lost).failures) == ("waiting", 0)


@pytest.mark.promise("I9")
def test_a_broker_under_its_memory_alarm_never_confirms_and_loses_nothing(
    stack: Stack, private_rabbitmq: PrivateRabbitMQ
) -> None:
    shared = stack.broker_url
    stack.broker_url = private_rabbitmq.url
    try:
        with stack.own_queue(), override_settings(RELIABLE_JOBS={**stack.settings, "PUBLISH_TIMEOUT": 0.8}):
            private_rabbitmq.set_memory_alarm(True)
            try:
                began = time.monotonic()
                results = [tasks.effect.delay(f"blocked {i}") for i in range(2)]
                assert time.monotonic() - began < 5.0
                deadline = time.monotonic() + 2
                while time.monotonic() < deadline:
                    assert publisher(app).breaker_open, "a probe was fooled: the alarm lets one message in"
                    time.sleep(0.02)
                results.append(tasks.effect.delay("blocked 2"))
                stack.sweep()
                assert not any(stack.job(result).is_final for result in results)
            finally:
                private_rabbitmq.set_memory_alarm(False)
            stack.worker()
            unharmed(stack, *stack.all_end(sweeping=True))
            assert [stack.effects(f"blocked {i}") for i in range(3)] == [1] * 3
    finally:
        stack.broker_url = shared


@pytest.mark.promise("I2")
def test_a_broker_wiped_and_restarted_under_a_worker_gets_its_jobs_again(
    stack: Stack, private_rabbitmq: PrivateRabbitMQ, outside: Path, gate: Path
) -> None:
    shared = stack.broker_url
    stack.broker_url = private_rabbitmq.url
    try:
        with stack.own_queue():
            worker = stack.worker()
            running = tasks.gated.delay("running", str(outside), str(gate))
            wait_until(lambda: lines(outside), "the body runs")
            queued = [tasks.effect.delay(f"queued {i}") for i in range(5)]
            private_rabbitmq.wipe()
            gate.touch()
            unharmed(stack, *stack.all_end(sweeping=True, seconds=2 * PATIENCE))
            assert stack.effects("running") == 1
            assert [stack.effects(f"queued {i}") for i in range(len(queued))] == [1] * 5
            assert stack.job(running).failures == 0
            assert worker.alive
    finally:
        stack.broker_url = shared


@pytest.mark.promise("I3")
def test_a_broker_connection_cut_in_a_run_brings_a_harmless_copy(
    stack: Stack, idle_queue: str, broker_proxy: CuttableProxy, outside: Path, gate: Path
) -> None:
    worker = stack.worker(concurrency=2, broker_url=broker_proxy.url(stack.broker_url))
    result = tasks.gated.delay("once", str(outside), str(gate))
    wait_until(lambda: lines(outside), "the body runs")
    broker_proxy.cut()
    worker.wait_for_line("received", 2)
    gate.touch()
    job = stack.ends(result)
    worker.wait_for_line(" ignored")
    assert (len(lines(outside)), stack.effects("once"), job.failures) == (1, 1, 0)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_database_away_at_the_claim_means_held_not_failed(
    stack: Stack, idle_queue: str, database_proxy: CuttableProxy, pool: str
) -> None:
    worker = stack.worker(pool=pool, database_url=database_proxy.url(stack.database_url))
    stack.ends(tasks.effect.delay("before"))
    database_proxy.refuse(True)
    database_proxy.cut()
    result = tasks.effect.delay("held")
    worker.wait_for_line("Holding the message")
    assert (stack.job(result).status, stack.depth()) == ("waiting", 0)
    database_proxy.refuse(False)
    job = stack.ends(result)
    assert (job.failures, job.crashes, job.interruptions) == (0, 0, 0)
    assert stack.effects("held") == 1
    assert job.sends == 1, "it was the held message that ran"


def test_a_database_away_longer_than_hold_gives_the_message_back(
    stack: Stack, idle_queue: str, database_proxy: CuttableProxy
) -> None:
    worker = stack.worker(database_url=database_proxy.url(stack.database_url), HOLD=0.5)
    database_proxy.refuse(True)
    database_proxy.cut()
    result = tasks.effect.delay("given back")
    worker.wait_for_line("received", 2)
    database_proxy.refuse(False)
    job = stack.ends(result, sweeping=True)
    assert (job.failures, job.crashes, stack.effects("given back")) == (0, 0, 1)


@pytest.mark.promise("I3")
def test_postgresql_restarted_in_the_body_costs_no_attempt(
    private_postgres: PrivatePostgres, stack: Stack, django_db_blocker: Any, outside: Path, gate: Path
) -> None:
    """Immediate mode: a crash of the server with the body's transaction open, and one in mid-statement."""
    private = Stack(private_postgres.url, stack.broker_url)
    with private.active():
        private.create()
        try:
            private.declare()
            worker = private.worker(concurrency=2)
            waiting = tasks.gated.delay("idle in the body", str(outside), str(gate))
            in_statement = tasks.sleeps_in_database.delay("in a statement", f"{outside}-2", 600)
            wait_until(lambda: lines(outside) and lines(Path(f"{outside}-2")), "both bodies run")
            private_postgres.restart("immediate")
            connection.close()
            gate.touch()
            for result, name in ((waiting, "idle in the body"), (in_statement, "in a statement")):
                job = private.ends(result, sweeping=True)
                assert (job.failures, job.crashes) == (0, 0)
                assert private.effects(name) == 1
            assert worker.alive
        finally:
            private.destroy()


def test_a_terminated_session_is_an_interruption_and_no_attempt(stack: Stack, idle_queue: str, outside: Path) -> None:
    stack.worker()
    result = tasks.sleeps_in_database.delay("once", str(outside), 600)
    wait_until(lambda: stack.terminate_backends("query LIKE '%pg_sleep%' AND state = 'active'"), "it is in its query")
    job = stack.ends(result, sweeping=True)
    assert (job.failures, job.crashes, job.interruptions) == (0, 0, 1)
    assert stack.effects("once") == 1
    assert stack.kinds(job) == ["interruption"]


def test_a_deadlock_between_two_bodies_costs_neither_an_attempt(stack: Stack, idle_queue: str) -> None:
    from tests.testapp.models import Parent

    Parent.objects.create(name="a")
    Parent.objects.create(name="b")
    stack.worker(concurrency=2)
    tasks.locks_two.delay("a", "b")
    tasks.locks_two.delay("b", "a")
    jobs = stack.all_end(sweeping=True)
    unharmed(stack, *jobs)
    assert sum(stack.kinds(job).count("interruption") for job in jobs) >= 1, "there was no deadlock"
    assert not any(job.interruptions for job in jobs)
    assert (stack.effects("a then b"), stack.effects("b then a")) == (1, 1)
