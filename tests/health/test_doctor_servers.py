"""The doctor on real servers: queues without workers, a broker that is away, and one that is blocked."""

from __future__ import annotations

import pytest

from reliable_jobs.health import Severity, broker, doctor
from tests.celery_app import app
from tests.support.harness import Stack
from tests.support.private_servers import CuttableProxy, PrivateRabbitMQ
from tests.testapp import tasks

pytestmark = pytest.mark.servers


def said(severity: Severity, area: str) -> list[str]:
    return [one.says for one in doctor.examine(["default"]) if one.severity == severity and one.area == area]


def test_a_queue_in_which_jobs_wait_needs_a_worker(stack: Stack, idle_queue: str) -> None:
    area = f"queue {idle_queue!r}"
    assert said(Severity.WARNING, area) == ["No worker consumes it; no job waits there now."]
    result = tasks.effect.delay("waits")
    assert said(Severity.ERROR, area) == ["1 job(s) are due, and no worker consumes it."]
    stack.worker()
    stack.ends(result)
    assert said(Severity.ERROR, area) == said(Severity.WARNING, area) == []
    assert said(Severity.INFO, area) == ["1 consumer(s), 0 message(s) ready, 0 job(s) due."]
    assert said(Severity.INFO, "broker")[0].endswith(" takes messages.")


def test_a_queue_that_is_gone_is_named_where_jobs_wait(stack: Stack, idle_queue: str) -> None:
    tasks.effect.delay("waits")
    stack.delete_queue()
    assert said(Severity.ERROR, f"queue {idle_queue!r}") == ["1 job(s) are due, and there is no such queue."]


def test_a_broker_that_refuses_is_named_without_its_password(
    stack: Stack, idle_queue: str, broker_proxy: CuttableProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "TIMEOUT", 1.0)
    with stack.through(broker_proxy.url(stack.broker_url)):
        broker_proxy.refuse(True)
        broker_proxy.cut()
        (error,) = said(Severity.ERROR, "broker")
    assert error.endswith("confirmed no message within 1 s. Jobs are written and wait.")
    assert "guest:**@" in error


def test_a_broker_that_is_blocked_is_told_from_one_that_is_away(
    stack: Stack, private_rabbitmq: PrivateRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stack.through(private_rabbitmq.url):
        assert said(Severity.ERROR, "broker") == []
        monkeypatch.setattr(broker, "TIMEOUT", 3.0)
        private_rabbitmq.set_memory_alarm(True)
        try:
            (error,) = said(Severity.ERROR, "broker")
        finally:
            private_rabbitmq.set_memory_alarm(False)
    assert error.endswith("accepts connections and takes no message: it is blocked by an alarm.")
    assert app.conf.broker_url == stack.broker_url
