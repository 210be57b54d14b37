"""I1: a job exists if and only if its transaction committed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from reliable_jobs.dispatch.publisher import Publisher
from reliable_jobs.models import Job
from tests.support.harness import Stack
from tests.testapp import tasks
from tests.testapp.models import Effect

pytestmark = [pytest.mark.servers, pytest.mark.promise("I1")]


class Undo(Exception):
    pass


@contextlib.contextmanager
def undone() -> Iterator[None]:
    """A transaction, or a savepoint, that rolls back at its end."""
    with contextlib.suppress(Undo), transaction.atomic():
        yield
        raise Undo


def test_a_transaction_rolled_back_leaves_neither_row_nor_message(stack: Stack, idle_queue: str) -> None:
    with undone():
        tasks.effect.delay("phantom")
    assert not Job.objects.exists()
    assert stack.depth() == 0


def test_no_message_goes_out_before_the_commit(stack: Stack, idle_queue: str) -> None:
    with transaction.atomic():
        result = tasks.effect.delay("later")
        assert stack.depth() == 0
    assert stack.depth() == 1
    stack.worker()
    stack.ends(result)
    assert stack.effects("later") == 1


@pytest.mark.parametrize("rolled_back", ["first", "middle", "last", "released, then the outer one"])
def test_a_savepoint_rolled_back_takes_its_jobs_along_and_no_others(
    stack: Stack, idle_queue: str, rolled_back: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishes: list[int] = []
    publish = Publisher.publish

    def counted(self: Publisher, messages: Any, timeout: float | None = None) -> Any:
        publishes.append(len(messages))
        return publish(self, messages, timeout)

    monkeypatch.setattr(Publisher, "publish", counted)

    def phantoms() -> None:
        with undone():
            if rolled_back.startswith("released"):
                with transaction.atomic():
                    tasks.effect.delay("phantom")
            tasks.effect.delay("phantom")

    with transaction.atomic():
        if rolled_back == "first":
            phantoms()
        tasks.effect.delay("kept")
        if rolled_back not in ("first", "last"):
            phantoms()
        with transaction.atomic():
            tasks.effect.delay("kept")
        if rolled_back == "last":
            phantoms()

    assert Job.objects.count() == 2
    assert publishes == [2]
    sent = {message.headers["id"] for message in stack.take_messages()}
    assert sent == {str(pk) for pk in Job.objects.values_list("pk", flat=True)}


def test_a_producer_killed_before_its_commit_leaves_nothing(stack: Stack, idle_queue: str) -> None:
    producer = stack.script(
        """
        with transaction.atomic():
            Effect.objects.create(name="order")
            tasks.effect.delay("phantom")
            pause("not committed")
        """
    )
    producer.wait_for_line("not committed")
    producer.kill9()
    assert not Job.objects.exists()
    assert not Effect.objects.exists()
    assert stack.depth() == 0


@pytest.mark.promise("I2")
def test_a_producer_killed_before_its_publish_leaves_a_job_to_the_sweeper(stack: Stack, idle_queue: str) -> None:
    producer = stack.script(
        """
        with transaction.atomic():
            Effect.objects.create(name="order")
            transaction.on_commit(lambda: pause("committed"))  # runs before the outbox's own hook
            tasks.effect.delay("receipt")
        """
    )
    producer.wait_for_line("committed")
    producer.kill9()
    assert stack.effects("order") == 1
    assert stack.depth() == 0, "the test missed its instant: the message is out"
    stack.worker()
    job = stack.ends(Job.objects.get(), sweeping=True)
    assert (job.failures, job.crashes) == (0, 0)
    assert stack.effects("receipt") == 1


def test_a_job_outside_the_transaction_survives_its_rollback(stack: Stack, idle_queue: str) -> None:
    with undone():
        tasks.effect.apply_async(("alarm",), transactional=False)
        tasks.effect.delay("phantom")
    assert stack.depth() == 1
    stack.worker()
    stack.ends(Job.objects.get())
    assert (stack.effects("alarm"), stack.effects("phantom")) == (1, 0)


def test_a_hook_that_raises_costs_no_job(stack: Stack, idle_queue: str) -> None:
    def broken() -> None:
        raise Undo

    with contextlib.suppress(Undo), transaction.atomic():
        transaction.on_commit(broken)
        tasks.effect.delay("after a broken hook")
    stack.worker()
    stack.ends(Job.objects.get(), sweeping=True)
    assert stack.effects("after a broken hook") == 1
