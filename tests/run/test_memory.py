"""C19, F6: what a delivery held is let go of when it is answered, without waiting for a garbage collection."""

from __future__ import annotations

import collections
import gc
import logging
import types
from collections.abc import Callable
from typing import Any

import pytest
from celery.app.task import Context

from reliable_jobs.models import Job
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks

jobs = inprocess.jobs
MANY = 30


def name_of(one: Any) -> str:
    """An object's type; for a frame or a traceback also its code. Threads that earlier tests left behind make some of
    their own, a few of each place; what a delivery keeps is kept MANY times at one place."""
    frame = one.tb_frame if isinstance(one, types.TracebackType) else one
    place = f" of {frame.f_code.co_name}" if isinstance(frame, types.FrameType) else ""
    return type(one).__name__ + place


def kept(repeat: Callable[[], Any]) -> collections.Counter[str]:
    """Objects that are there afterwards for each repetition and were not before, by name; without a collection."""
    repeat()
    repeat()
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps the records
    try:
        before = collections.Counter(name_of(one) for one in gc.get_objects())
        for _ in range(MANY):
            repeat()
        after = collections.Counter(name_of(one) for one in gc.get_objects())
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
    return collections.Counter({name: count for name, count in (after - before).items() if count >= MANY})


def copy(jobs: InProcess) -> Callable[[], None]:
    result = tasks.effect.delay("x")
    jobs.work()
    return lambda: assert_answered(jobs, jobs.message(result, redelivered=True))


def retry(jobs: InProcess) -> Callable[[], None]:
    result = tasks.fails_first.delay("x", 10**6)

    def once() -> None:
        Job.objects.update(failures=0, sends=1, due_at="2020-01-01T00:00:00Z")
        assert_answered(jobs, jobs.message(result))

    return once


def failure(jobs: InProcess) -> Callable[[], None]:
    def once() -> None:
        tasks.fails.delay("x")
        assert_answered(jobs, jobs.take()[0])

    return once


def snooze(jobs: InProcess) -> Callable[[], None]:
    result = tasks.snoozes.delay("x", 10**6)

    def once() -> None:
        Job.objects.update(sends=1, due_at="2020-01-01T00:00:00Z")
        assert_answered(jobs, jobs.message(result))

    return once


def not_due(jobs: InProcess) -> Callable[[], None]:
    result = tasks.effect.apply_async(("x",), countdown=3600)
    return lambda: assert_answered(jobs, jobs.message(result))


def assert_answered(jobs: InProcess, message: Any) -> None:
    assert jobs.deliver(message).answer == "acked"


@pytest.mark.promise("I6")
@pytest.mark.parametrize("what", [copy, retry, failure, snooze, not_due])
def test_c19_f6_no_frame_of_an_answered_delivery_is_kept(jobs: InProcess, what: Any) -> None:
    found = kept(what(jobs))
    print(found)
    kinds = ("traceback", "frame", Context.__name__, "Job")
    mine = {name: count for name, count in found.items() if name.split()[0] in kinds}
    assert not mine, found
