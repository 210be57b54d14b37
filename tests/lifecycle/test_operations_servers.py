"""What people do to jobs while runs and requests hold rows and keys. PostgreSQL."""

from __future__ import annotations

import threading
import time

import pytest
from django.db import connections, transaction
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.models import Job
from tests.support.harness import Stack, Transaction
from tests.testapp import tasks

pytestmark = pytest.mark.servers


def settled(*keys: str) -> list[Job]:
    """Jobs that have ended, whose keys are free."""
    ids = [tasks.effect.apply_async((key,), key=key).id for key in keys]
    Job.objects.filter(pk__in=ids).update(status="failed", finished_at=timezone.now(), live_key=None)
    return [Job.objects.get(pk=pk) for pk in ids]


def use(*keys: str) -> None:
    for key in keys:
        tasks.effect.apply_async((key,), key=key)


def test_c1_a_requeue_does_not_wait_for_a_run_that_has_used_the_key(stack: Stack) -> None:
    jobs = settled("a", "b", "c")
    run = Transaction(lambda: use("b"))
    began = time.monotonic()
    report = lifecycle.requeue([job.pk for job in jobs], "default", actor="ann")
    assert time.monotonic() - began < 5
    run.end()
    assert set(report.done) == {jobs[0].pk, jobs[2].pk}
    assert report.skipped == {jobs[1].pk: "key 'b' in use by an open transaction; try again"}
    report = lifecycle.requeue([jobs[1].pk], "default", actor="ann")
    assert "newer unfinished job" in report.skipped[jobs[1].pk]


def test_c1_two_requeued_keys_in_the_other_order_make_no_deadlock(stack: Stack) -> None:
    """It holds b and then wants a, while the requeue has a and wants b."""
    jobs = settled("a", "b")
    has_b, go = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def produce() -> None:
        try:
            with transaction.atomic():
                use("b")
                has_b.set()
                go.wait(20)
                use("a")
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    producer = threading.Thread(target=produce)
    producer.start()
    assert has_b.wait(20)
    releasing = threading.Timer(0.05, go.set)
    releasing.start()
    report = lifecycle.requeue([job.pk for job in jobs], "default", actor="ann")
    go.set()
    producer.join(30)
    assert not errors
    assert jobs[1].pk in report.skipped
    assert Job.objects.filter(live_key="a").count() == Job.objects.filter(live_key="b").count() == 1


def test_c1_the_callers_own_lock_timeout_is_kept(stack: Stack) -> None:
    jobs = settled("a")
    with transaction.atomic(), connections["default"].cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '7s'")
        lifecycle.requeue([job.pk for job in jobs], "default", actor="ann")
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("7s",)
