"""Bodies that misbehave, for test_adversary.py: its worker is started with ``-I tests.promises.adversary_tasks``."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from celery import shared_task
from django.db import connection, transaction

from reliable_jobs import ReliableTask
from tests.testapp.models import Effect
from tests.testapp.tasks import effect, log_outside


@shared_task(base=ReliableTask, bind=True)
def snoozes_then_raises(self: Any, log: str) -> None:
    log_outside(log, "run")
    self.snooze(0)
    raise ValueError("after snooze")


@shared_task(base=ReliableTask, bind=True)
def asks_quietly_then_raises(self: Any, log: str) -> None:
    log_outside(log, "run")
    self.retry(countdown=0, throw=False)
    raise ValueError("after a quiet retry")


@shared_task(base=ReliableTask, bind=True)
def replaced_with_eta(self: Any, name: str, eta: str) -> None:
    self.replace(effect.si(name).set(eta=eta))


@shared_task(base=ReliableTask, bind=True)
def replaced_with_expires(self: Any, name: str) -> None:
    self.replace(effect.si(name).set(expires=-1))


@shared_task(base=ReliableTask, bind=True)
def retries_with_expires(self: Any) -> None:
    if self.request.retries == 0:
        raise self.retry(countdown=0, expires=3600)


@shared_task(base=ReliableTask, bind=True)
def retries_with_other_arguments(self: Any, again: bool, name: str = "") -> None:
    seen = (self.request.headers or {}).get("tenant") or self.request.get("tenant")
    if again:
        raise self.retry(args=(False, str(seen)), countdown=0)
    Effect.objects.create(name=name, value=str(seen))


@shared_task(base=ReliableTask, bind=True)
def walks(self: Any, depth: int) -> int:
    """Recursion by a direct call, as Celery allows."""
    Effect.objects.create(name="walk", value=str(depth))
    return depth if depth == 0 else self(depth - 1)


@shared_task(base=ReliableTask)
def raises_surrogate() -> None:
    raise ValueError("no such file: caf\udce9.txt")


@shared_task(base=ReliableTask, atomic=False)
def raises_surrogate_outside(log: str) -> None:
    log_outside(log, "run")
    raise ValueError("no such file: caf\udce9.txt")


@shared_task(base=ReliableTask, autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0)
def retries_surrogate(log: str) -> None:
    log_outside(log, "run")
    raise ValueError("no such file: caf\udce9.txt")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@shared_task(base=ReliableTask, atomic=False)
def raises_mute(log: str) -> None:
    log_outside(log, "run")
    raise Mute


@shared_task(base=ReliableTask)
def leaves_atomic_open(name: str) -> None:
    transaction.atomic().__enter__()
    Effect.objects.create(name=name)


@shared_task(base=ReliableTask, atomic=False)
def leaves_atomic_open_outside(log: str) -> None:
    log_outside(log, "run")
    transaction.atomic().__enter__()


@shared_task(base=ReliableTask, atomic=False)
def leaves_begin(log: str) -> None:
    log_outside(log, "run")
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")


@shared_task(base=ReliableTask, atomic=False)
def leaves_autocommit_off(log: str) -> None:
    log_outside(log, "run")
    transaction.set_autocommit(False)


@shared_task(base=ReliableTask)
def cancelled_by_asyncio(log: str) -> None:
    log_outside(log, "run")
    raise asyncio.CancelledError


@shared_task(base=ReliableTask, autoretry_for=(Exception,), max_retries=1, retry_backoff=False, default_retry_delay=0)
def deadlocks(name: str, log: str, times: int) -> None:
    """A deadlock, as the server reports it, in the first runs."""
    log_outside(log, "run")
    Effect.objects.create(name=name)
    if len(Path(log).read_text().split()) <= times:
        _raise_in_database("40P01")


def _raise_in_database(state: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'as the server says it' USING ERRCODE = '{state}'; END $$")


@shared_task(base=ReliableTask)
def meets_an_outage(name: str, log: str, state: str) -> None:
    """In its first run."""
    log_outside(log, "run")
    Effect.objects.create(name=name)
    if len(Path(log).read_text().split()) == 1:
        _raise_in_database(state)


@shared_task(base=ReliableTask, atomic=False, bind=True)
def fences_long(self: Any, name: str, log: str, fenced: float, after: float) -> None:
    log_outside(log, f"run {os.getpid()}")
    with self.fenced():
        Effect.objects.create(name=name)
        time.sleep(fenced)
    time.sleep(after)


@shared_task(base=ReliableTask, soft_time_limit=1)
def softly_limited(name: str) -> None:
    Effect.objects.create(name=name)
