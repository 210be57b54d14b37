"""What a task function may be: async (B5), from a mixin (B13), not a generator (B5)."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from celery import shared_task
from django.db import connection

from reliable_jobs import ReliableTask, RetriedTask
from reliable_jobs.errors import InvalidOption
from reliable_jobs.idempotency import GetOrCreateTask, IdempotentTask
from reliable_jobs.models import Job
from reliable_jobs.task import function
from tests.celery_app import app
from tests.support import inprocess
from tests.support.harness import Stack
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect, Parent

jobs = inprocess.jobs


# --- async def (B5) ---------------------------------------------------------------------------------------------------


@shared_task(base=ReliableTask, name="test_function.writes", ignore_result=True)
async def writes(name: str, fail: bool = False) -> None:
    await asyncio.sleep(0)
    await Effect.objects.acreate(name=name)
    if fail:
        raise ValueError(name)


@shared_task(base=ReliableTask, name="test_function.tells", bind=True)
async def tells(self: Any, x: int) -> dict[str, Any]:
    @sync_to_async
    def here() -> dict[str, Any]:
        return {"thread": threading.get_ident(), "atomic": connection.in_atomic_block}

    return {"x": x, "own": bool(self.request.id), **await here()}


@shared_task(base=RetriedTask, name="test_function.retried", bind=True, retry_backoff=False, default_retry_delay=0)
async def retried(self: Any, name: str) -> str:
    await Effect.objects.acreate(name=name)
    if self.request.retries < 2:
        raise ValueError("not yet")
    return name


class AsyncClass(ReliableTask):
    name = "test_function.AsyncClass"

    async def run(self, x: int) -> int:
        await asyncio.sleep(0)
        return x * 2


async_class = app.register_task(AsyncClass())


def decorated(run: Any) -> Any:
    @functools.wraps(run)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    return wrapper


def hidden(run: Any) -> Any:
    def without_a_mark(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    return without_a_mark


@shared_task(base=ReliableTask, name="test_function.wrapped")
@decorated
async def wrapped(x: int) -> int:
    return x + 1


@shared_task(base=ReliableTask, name="test_function.unmarked")
@hidden
async def unmarked(x: int) -> int:
    return x + 1


@pytest.mark.promise("I3")
@pytest.mark.parametrize("fail", [False, True])
def test_b5_an_async_function_runs_in_the_transaction_of_its_job(jobs: InProcess, fail: bool) -> None:
    job = jobs.run(writes, "async", fail)
    assert (job.status, jobs.effects("async")) == (("failed", 0) if fail else ("succeeded", 1)), job.error


def test_b5_its_database_work_is_done_in_the_workers_thread(jobs: InProcess) -> None:
    result = tells.delay(3)
    jobs.work()
    assert result.get(timeout=1) == {"x": 3, "own": True, "thread": threading.get_ident(), "atomic": True}


def test_b5_autoretry_sees_the_errors_of_an_async_function(jobs: InProcess) -> None:
    result = retried.delay("retried")
    jobs.finish()
    assert (result.get(timeout=1), jobs.effects("retried")) == ("retried", 1)


@pytest.mark.parametrize("task", [wrapped, unmarked])
def test_b5_a_decorated_async_function_runs(jobs: InProcess, task: Any) -> None:
    result = task.delay(1)
    jobs.work()
    assert result.get(timeout=1) == 2


def test_b5_a_class_with_an_async_run_runs_and_is_checked(jobs: InProcess) -> None:
    result = async_class.delay(4)
    jobs.work()
    assert result.get(timeout=1) == 8
    with pytest.raises(TypeError, match="argument"):
        async_class.delay()


def test_b5_a_direct_call_waits_and_async_code_awaits_it(jobs: InProcess) -> None:
    assert (async_class(2), wrapped(1)) == (4, 2)

    async def view() -> int:
        return int(await wrapped(5))

    assert async_to_sync(view)() == 6
    assert asyncio.run(view()) == 6


@pytest.fixture
def eager() -> Iterator[None]:
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


def test_b5_eagerly_it_runs_at_once(jobs: InProcess, eager: None) -> None:
    assert async_class.delay(3).get() == 6
    writes.delay("eager").get()
    assert jobs.effects("eager") == 1
    assert isinstance(writes.delay("undone", True).result, ValueError)
    assert jobs.effects("undone") == 0


def test_b5_an_interrupted_wait_cancels_the_function() -> None:
    """As the soft time limit does: its exception comes in the thread that waits."""
    ended, main = threading.Event(), threading.get_ident()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.set()
            raise

    async def is_interrupted() -> None:
        asyncio.get_running_loop().call_later(0.1, signal.pthread_kill, main, signal.SIGALRM)
        await long()

    def raise_it(number: int, frame: Any) -> None:
        raise TimeoutError("soft limit")

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        with pytest.raises(TimeoutError, match="soft limit"):
            function.finished(is_interrupted())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert ended.wait(10)


def test_b5_under_greenlets_it_is_refused_with_the_reason(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "detect_environment", lambda: "gevent")
    job = jobs.run(writes, "greenlet")
    assert (job.status, "can't run under gevent" in job.error) == ("failed", True)


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_b5_async_functions_run_in_a_workers_pool(stack: Stack, pool: str) -> None:
    with stack.own_queue():
        results = [tasks.effect_async.delay(f"async {n}") for n in range(4)]
        failed = tasks.effect_async.delay("fails", True)
        stack.worker(pool=pool, concurrency=2)
        for result in results:
            stack.ends(result)
        stack.ends(failed, "failed")
    assert Effect.objects.filter(name__startswith="async").count() == 4
    assert stack.effects("fails") == 0


@pytest.mark.servers
@pytest.mark.slow
def test_b5_the_soft_time_limit_ends_an_async_function(stack: Stack) -> None:
    with stack.own_queue():
        result = tasks.sleeps_async.delay()
        stack.worker()
        assert "SoftTimeLimitExceeded" in stack.ends(result, "failed").error
        stack.ends(tasks.effect.delay("after"))


# --- generators (B5) --------------------------------------------------------------------------------------------------
# Not shared: the checks of every other app in this process would name them.


@app.task(base=ReliableTask, name="test_function.generates", shared=False)
def generates(n: int) -> Iterator[int]:
    yield n


@app.task(base=ReliableTask, name="test_function.generates_async", shared=False, ignore_result=True)
async def generates_async(n: int) -> AsyncIterator[int]:
    yield n


@app.task(base=ReliableTask, name="test_function.generates_hidden", shared=False, ignore_result=True)
@decorated
def generates_hidden(n: int) -> Iterator[int]:
    yield n


@pytest.mark.promise("I7")
@pytest.mark.parametrize("task", [generates, generates_async])
@pytest.mark.parametrize(
    "call", [lambda task: task.delay(1), lambda task: task.bulk_delay([(1,)]), lambda task: task.s(1).apply_async()]
)
def test_b5_a_generator_function_is_refused_at_the_call(jobs: InProcess, task: Any, call: Any) -> None:
    with pytest.raises(InvalidOption, match="generator"):
        call(task)
    assert not Job.objects.exists()


@pytest.mark.promise("I7")
@pytest.mark.parametrize("task", [generates, generates_async, generates_hidden])
def test_b5_a_generator_function_that_a_message_names_fails_its_job(jobs: InProcess, task: Any) -> None:
    message = jobs.foreign(task.name, [1], ignore_result=True)
    jobs.deliver(message)
    job = Job.objects.get()
    assert (job.status, "generator" in job.error) == ("failed", True), job.error


# --- the resolved run (B13) -------------------------------------------------------------------------------------------


class Adds:
    def run(self, x: int, y: int) -> int:
        return x + y


class TakesOne(ReliableTask):
    def run(self, x: int) -> int:
        return x


class AddsInstead(Adds, TakesOne):
    name = "test_function.AddsInstead"


class AsyncMixin:
    async def run(self, x: int, y: int) -> int:
        return x * y


class Multiplies(AsyncMixin, TakesOne):
    name = "test_function.Multiplies"


class Inherits(AddsInstead):
    name = "test_function.Inherits"


adds, multiplies, inherits = (app.register_task(cls()) for cls in (AddsInstead, Multiplies, Inherits))


@pytest.mark.promise("I7")
@pytest.mark.parametrize(("task", "value"), [(adds, 5), (multiplies, 6), (inherits, 5)])
def test_b13_arguments_are_checked_against_the_run_of_a_mixin(jobs: InProcess, task: Any, value: int) -> None:
    result = task.delay(2, y=3)
    jobs.work()
    assert result.get(timeout=1) == value
    with pytest.raises(TypeError, match="argument"):
        task.delay(2)


class KeyedByNumber(IdempotentTask):
    def natural_key(self, *args: Any) -> int:
        return int(args[0])


class NotesOnce:
    def run(self, number: int) -> int:
        Effect.objects.create(name=f"number {number}")
        return number


class NotedOnce(NotesOnce, KeyedByNumber):
    name = "test_function.NotedOnce"


noted_once = app.register_task(NotedOnce())


def test_b13_the_run_of_a_mixin_is_behind_its_natural_key(jobs: InProcess) -> None:
    for _ in range(2):
        jobs.deliver(jobs.foreign(noted_once.name, [17]))
    jobs.finish()
    assert jobs.effects("number 17") == 1


class ByName:
    def lookup(self, name: str) -> dict[str, Any]:
        return {"name": name}


class MakesParent(ByName, GetOrCreateTask):
    name = "test_function.MakesParent"
    model = Parent


makes_parent = app.register_task(MakesParent())


def test_b13_the_lookup_of_a_mixin_is_the_signature(jobs: InProcess) -> None:
    with pytest.raises(TypeError, match="argument"):
        makes_parent.delay()
    assert jobs.run(makes_parent, "made").status == "succeeded"
    assert Parent.objects.filter(name="made").exists()
