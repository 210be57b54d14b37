"""Tasks of the test suite. Those that block wait for a file, so that a test decides when they go on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import amqp
from celery import chord, group, shared_task, signals
from celery.exceptions import Ignore
from celery.worker.consumer import Consumer
from django.db import IntegrityError, connection, transaction

from reliable_jobs import ReliableTask
from reliable_jobs.run import bundle_apart
from tests.testapp.models import Child, Effect, Parent


def log_outside(path: str, line: str) -> None:
    """Append to a file outside the database: an effect that no rollback undoes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def wait_for(path: str, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)


@signals.task_revoked.connect
def _say_revoked(request: Any, terminated: bool, expired: bool, **kwargs: Any) -> None:
    """For the worker's log."""
    print(f"task_revoked {request.id} terminated={terminated} expired={expired}", flush=True)


class OutOfStock(Exception):
    """An exception of a project's own, which can't be made of its ``args``."""

    def __init__(self, article: str, left: int) -> None:
        super().__init__(f"{left} of {article} left")
        self.article, self.left = article, left


@shared_task(base=ReliableTask)
def out_of_stock(article: str) -> None:
    raise OutOfStock(article, 0)


@shared_task(base=ReliableTask, bind=True)
def shows_progress(self: Any, gate: str, name: str = "") -> str:
    """Atomic: says how far it is, and waits for the gate."""
    self.update_state(state="PROGRESS", meta={"done": 1, "of": 2})
    wait_for(gate)
    return name


@shared_task(base=ReliableTask, bind=True)
def names_its_end(self: Any) -> None:
    self.update_state(state="FAILURE", meta=OutOfStock("tea", 3))
    raise Ignore


@shared_task(base=ReliableTask)
def starts_another(name: str) -> Any:
    return effect.delay(name)


@shared_task(base=ReliableTask)
def starts_a_group(*names: str) -> Any:
    return group(effect.s(name) for name in names).delay()


@shared_task(base=ReliableTask)
def effect(name: str, value: str = "") -> str:
    Effect.objects.create(name=name, value=value)
    return name


@shared_task
def plain_effect(*args: Any, name: str) -> None:
    Effect.objects.create(name=name)


def _told_the_id(task_id: str, *, name: str) -> None:
    Effect.objects.create(name=name, value=task_id)


def _told_all(request: Any, exc: Any, traceback: str, name: str) -> None:
    Effect.objects.create(name=name, value=f"{request.id} {exc}")


#: Errbacks in both of Celery's styles.
errback_by_id = shared_task(base=ReliableTask, name="tests.errback_by_id")(_told_the_id)
plain_errback_by_id = shared_task(name="tests.plain_errback_by_id")(_told_the_id)
errback_with_all = shared_task(base=ReliableTask, name="tests.errback_with_all")(_told_all)
plain_errback_with_all = shared_task(name="tests.plain_errback_with_all")(_told_all)


@shared_task(base=ReliableTask)
def fan_out(number: int) -> None:
    effect.bulk_delay((f"child {n}",) for n in range(number))


@shared_task(base=ReliableTask)
def add(x: Any, y: Any) -> Any:
    return x + y


@shared_task(base=ReliableTask)
def gated(name: str, log: str, gate: str) -> None:
    """Effect, a line outside, then wait for the gate inside the body."""
    Effect.objects.create(name=name)
    log_outside(log, f"{name} {os.getpid()}")
    wait_for(gate)


@shared_task(base=ReliableTask)
def fails(name: str) -> None:
    Effect.objects.create(name=name)
    raise ValueError(f"no {name}")


@shared_task(base=ReliableTask, bind=True, max_retries=5)
def fails_first(self: Any, name: str, times: int, countdown: float = 0.0) -> str:
    Effect.objects.create(name=f"{name}-undone")
    if self.request.retries < times:
        raise self.retry(countdown=countdown, exc=ValueError(f"attempt {self.request.retries}"))
    Effect.objects.create(name=name)
    return name


@shared_task(base=ReliableTask)
def numbers(name: str) -> int:
    """Writes what it has read: two at once conflict under SERIALIZABLE."""
    number = Effect.objects.filter(name=name).count()
    time.sleep(0.02)
    Effect.objects.create(name=name, value=str(number))
    return number


@shared_task(base=ReliableTask)
def kills_itself(log: str) -> None:
    log_outside(log, str(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)


class KillsBeforeStart(ReliableTask):
    """Its hook kills the process, before the job can be run."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        log_outside(args[0], str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(base=KillsBeforeStart)
def kills_before_start(log: str) -> None:
    raise AssertionError("it never starts")


@shared_task(base=ReliableTask)
def kills_first(name: str, log: str, times: int) -> None:
    """Kills its own process on its first ``times`` runs."""
    log_outside(log, name)
    runs = Path(log).read_text().split().count(name)
    Effect.objects.create(name=name)
    if runs <= times:
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(base=ReliableTask)
def exits(code: int | str = 1) -> None:
    sys.exit(code)


@shared_task(base=ReliableTask)
def out_of_memory() -> None:
    raise MemoryError("too much")


@shared_task(base=ReliableTask)
def breaks_deferred(name: str) -> None:
    Effect.objects.create(name=name)
    Child.objects.create(parent_id=10**9)


@shared_task(base=ReliableTask)
def swallows_integrity_error(name: str) -> None:
    Parent.objects.get_or_create(name=name)
    with contextlib.suppress(IntegrityError):
        Parent.objects.create(name=name)
    Effect.objects.create(name=name)


@shared_task(base=ReliableTask)
def commits_by_hand(name: str) -> None:
    Effect.objects.create(name=name)
    with connection.cursor() as cursor:
        cursor.execute("COMMIT")


@shared_task(base=ReliableTask)
def enqueues(name: str, fail: bool = False) -> None:
    effect.delay(name)
    if fail:
        raise ValueError(name)


@shared_task(base=ReliableTask)
def meets(path: str, number: int) -> None:
    """One of two, 0 and 1: ends when the other runs, too."""
    Path(f"{path}.{number}").touch()
    deadline = time.monotonic() + 120
    while not Path(f"{path}.{1 - number}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@shared_task(base=ReliableTask, bind=True)
def becomes_a_chord(self: Any, name: str) -> None:
    """Replaces itself by a chord, in its own queue."""
    Effect.objects.create(name=name)
    queue = self.request.delivery_info["routing_key"]
    first, second, last = (effect.si(f"{name}-{end}").set(queue=queue) for end in "abc")
    raise self.replace(chord([first, second], last))


@shared_task(base=ReliableTask, atomic=False, bind=True)
def slow_outside(self: Any, name: str, log: str, gate: str) -> str:
    log_outside(log, f"{name} {os.getpid()}")
    wait_for(gate)
    with self.fenced():
        Effect.objects.create(name=name)
    return name


@shared_task(base=ReliableTask, bind=True)
def snoozes(self: Any, name: str, pieces: int) -> int:
    """Long work in pieces: each run commits one and asks for another."""
    Effect.objects.create(name=name)
    done = Effect.objects.filter(name=name).count()
    if done < pieces:
        raise self.snooze(0)
    return done


@shared_task(base=ReliableTask, bind=True)
def becomes(self: Any, name: str) -> Any:
    Effect.objects.create(name=f"{name}-before")
    return self.replace(effect.si(name, "replaced"))


@shared_task(base=ReliableTask, sensitive=("password",))
def login(user: str, password: str) -> None:
    raise ValueError(f"{user} may not log in with {password}")


@shared_task(base=ReliableTask, time_limit=3)
def too_long(log: str) -> None:
    log_outside(log, "start")
    wait_for("/nonexistent", 60)


@shared_task(base=ReliableTask)
def holds_transaction(name: str) -> None:
    with transaction.atomic():
        Effect.objects.create(name=name)


@shared_task(base=ReliableTask)
def settles_then_waits(name: str, log: str, gate: str) -> str:
    """Effect; then, after the settlement's commit and before the message is acknowledged, a line outside and the
    gate."""

    def after_commit() -> None:
        log_outside(log, f"{name} {os.getpid()}")
        wait_for(gate)

    Effect.objects.create(name=name)
    transaction.on_commit(after_commit)
    return name


@shared_task(base=ReliableTask)
def cuts_off_its_worker(name: str) -> None:
    """Effect; then, after the settlement's commit and at once before the acknowledgement, the connections of this
    process that have consumers are shut: in a greenlet pool the acknowledgement is the first to notice."""

    def after_commit() -> None:
        for found in [thing for thing in gc.get_objects() if type(thing) is amqp.Connection and thing.transport]:
            if any(getattr(channel, "callbacks", None) for channel in found.channels.values()):
                found.transport.sock.shutdown(socket.SHUT_RDWR)

    Effect.objects.create(name=name)
    transaction.on_commit(after_commit)


@shared_task(base=ReliableTask)
def stops_its_workers_loop(seconds: float) -> None:
    """In a pool of threads: the consumer's loop sleeps from now on."""
    for found in [thing for thing in gc.get_objects() if type(thing) is Consumer]:
        found.call_soon(time.sleep, seconds)


@shared_task(base=ReliableTask, atomic=False)
def returns_late(name: str, log: str, gate: str) -> str:
    """Non-atomic and without fenced(): only its settlement tells whether the job is still its own."""
    log_outside(log, f"{name} {os.getpid()}")
    wait_for(gate)
    return f"{name} {os.getpid()}"


@shared_task(base=ReliableTask, atomic=False)
def never_yields(name: str, log: str, gate: str) -> None:
    """Waits as a function that computes does, for gevent and eventlet: neither replaces this call."""
    log_outside(log, f"{name} {os.getpid()}")
    while not os.path.exists(gate):
        signal.sigtimedwait([], 0.05)


@shared_task(base=ReliableTask)
def sleeps_in_database(name: str, log: str, seconds: float) -> None:
    """Only its first run waits, in a statement."""
    Effect.objects.create(name=name)
    log_outside(log, f"{name} {os.getpid()}")
    if len(Path(log).read_text().splitlines()) == 1:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", [seconds])


@shared_task(base=ReliableTask)
def ends_its_session(log: str) -> None:
    """Takes its own database session down each time, as a query that crashes the backend would."""
    log_outside(log, str(os.getpid()))
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@shared_task(base=ReliableTask)
def ends_its_session_once(name: str, log: str) -> None:
    Effect.objects.create(name=name)
    log_outside(log, str(os.getpid()))
    if len(Path(log).read_text().splitlines()) == 1:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@shared_task(base=ReliableTask, autoretry_for=(ValueError,), max_retries=2, default_retry_delay=0)
def always_fails(log: str) -> None:
    log_outside(log, str(os.getpid()))
    raise ValueError("never")


@shared_task(base=ReliableTask, bind=True)
def becomes_later(self: Any, name: str, log: str) -> Any:
    log_outside(log, "before")
    return self.replace(effect.si(name, "replaced").set(countdown=3600))


@shared_task(base=ReliableTask)
def returns_nonsense(name: str) -> object:
    Effect.objects.create(name=name)
    return object()


@shared_task(base=ReliableTask)
def locks_two(first: str, second: str) -> None:
    """Two of these in opposite orders, at once, deadlock on their first run."""
    Parent.objects.select_for_update().get(name=first)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.5)")
    Parent.objects.select_for_update().get(name=second)
    Effect.objects.create(name=f"{first} then {second}")


@shared_task(base=ReliableTask, time_limit=3, atomic=False)
def too_long_outside(log: str) -> None:
    log_outside(log, "start")
    wait_for("/nonexistent", 60)


@shared_task(base=ReliableTask, time_limit=1, atomic=False)
def has_a_limit(name: str, log: str, gate: str) -> None:
    log_outside(log, f"{name} {os.getpid()}")
    wait_for(gate)


@shared_task(base=ReliableTask)
def takes_a_while(name: str, log: str) -> None:
    Effect.objects.create(name=name)
    log_outside(log, name)
    time.sleep(0.7)


@shared_task(base=ReliableTask)
def kills_its_company(log: str, others: int) -> None:
    """Kills its process as soon as so many others have begun at all."""
    log_outside(log, "poison")
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline and len(set(Path(log).read_text().split())) <= others:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


# For tests whose jobs are all to come in one message, on however slow a machine.
if "TEST_LONGEST" in os.environ:
    bundle_apart.LONGEST = float(os.environ["TEST_LONGEST"])


# Two versions of the code, for tests of deploys.
if os.environ.get("TEST_NEW_CODE"):

    @shared_task(base=ReliableTask, name="tests.testapp.tasks.new_task")
    def new_task(name: str) -> None:
        Effect.objects.create(name=name)

    @shared_task(base=ReliableTask, name="tests.testapp.tasks.changed")
    def changed(name: str, extra: str) -> None:
        Effect.objects.create(name=name, value=extra)

else:

    @shared_task(base=ReliableTask, name="tests.testapp.tasks.changed")
    def changed(name: str) -> None:
        Effect.objects.create(name=name)


def _begin_small(name: str, log: str, what: str) -> None:
    Effect.objects.create(name=name)
    log_outside(log, f"{name} {os.getpid()}")
    if what == "wait":
        wait_for(f"{log}.gate")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)


@shared_task(base=ReliableTask, bundle=20)
def small(name: str, log: str, what: str = "") -> None:
    _begin_small(name, log, what)
    if what == "commit":
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")
    if what == "reconnect":
        connection.connect()
    if what == "left open":
        transaction.atomic().__enter__()
    if what == "deferred":
        Child.objects.create(parent_id=10**9)


@shared_task(base=ReliableTask, bind=True)
def shares_its_message(self: Any, name: str, log: str, what: str = "") -> str:
    _begin_small(name, log, what)
    if what == "fail":
        raise ValueError(name)
    if what == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0)
    if what == "snooze" and not Path(f"{log}.snoozed").exists():
        Path(f"{log}.snoozed").touch()
        raise self.snooze(0)
    return name


@shared_task(base=ReliableTask, bundle=20, time_limit=2)
def small_but_slow(name: str, log: str) -> None:
    Effect.objects.create(name=name)
    log_outside(log, name)
    time.sleep(0.4)


@shared_task(base=ReliableTask)
async def effect_async(name: str, fail: bool = False) -> str:
    await asyncio.sleep(0.05)
    await Effect.objects.acreate(name=name)
    if fail:
        raise ValueError(name)
    return name


@shared_task(base=ReliableTask, soft_time_limit=1)
async def sleeps_async() -> None:
    await asyncio.sleep(60)
