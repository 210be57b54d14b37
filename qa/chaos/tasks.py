"""The bodies of the workload. Each notes outside that it starts and ends, so that the campaign knows whom it hits."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from celery import shared_task

from qa.chaos import ledger
from reliable_jobs import ReliableTask
from tests.testapp.models import Effect


@contextlib.contextmanager
def on_record(task: Any, name: str) -> Iterator[None]:
    run = task.request.get("reliable_run")
    epoch = run.claim.job.epoch if run is not None else -1
    facts = {"job": str(task.request.id), "name": name, "retries": task.request.retries, "epoch": epoch}
    ledger.note("starts", **facts)
    try:
        yield
    finally:
        ledger.note("ends", **facts)


@shared_task(base=ReliableTask, bind=True)
def book(self: Any, name: str, seconds: float = 0.0) -> str:
    """Half the work before the effect, half of it after."""
    with on_record(self, name):
        time.sleep(seconds / 2)
        Effect.objects.create(name=name, value=self.request.id)
        time.sleep(seconds / 2)
    return name


@shared_task(base=ReliableTask, bind=True, bundle=20)
def small(self: Any, name: str, seconds: float = 0.0, fails: bool = False) -> str:
    """Shares message and transaction with others; one that fails must not take its neighbours along."""
    with on_record(self, name):
        Effect.objects.create(name=name, value=self.request.id)
        time.sleep(seconds)
        if fails:
            raise ValueError("planned: this job is to fail, and its neighbours are not")
    return name


@shared_task(base=ReliableTask, bind=True, max_retries=5)
def shares(self: Any, name: str, seconds: float = 0.0, way: str = "") -> str:
    """Shares its message with others, and nothing else: apps.py says that it is quick. The sleep is its work: nothing
    is waited for, and a kill is to meet it there."""
    with on_record(self, name):
        Effect.objects.create(name=name, value=self.request.id)
        time.sleep(seconds)
        if way == "fails":
            raise ValueError("planned: this job is to fail, and its neighbours are not")
        if way == "retries" and self.request.retries == 0:
            raise self.retry(countdown=0.1, exc=ValueError("planned failure 0"))
    return name


@shared_task(base=ReliableTask, bind=True, atomic=False)
def call(self: Any, name: str, seconds: float = 0.0) -> str:
    """An effect outside, then one in the database that only the run which owns the job may commit."""
    with on_record(self, name):
        ledger.note("external", name=name, key=self.idempotency_key)
        time.sleep(seconds)
        with self.fenced():
            epoch = self.request.reliable_run.claim.job.epoch
            Effect.objects.create(name=name, value=str(epoch))
    return name


@shared_task(base=ReliableTask, bind=True, max_retries=5)
def flaky(self: Any, name: str, failures: int, seconds: float = 0.0) -> None:
    """Fails as often as it was told, each time after writing what must be undone."""
    with on_record(self, name):
        Effect.objects.create(name=f"{name}/try{self.request.retries}", value=self.request.id)
        time.sleep(seconds)
        if self.request.retries < failures:
            raise self.retry(countdown=0.2, exc=ValueError(f"planned failure {self.request.retries}"))


@shared_task(base=ReliableTask, bind=True, max_retries=5)
def spawns(self: Any, name: str, failures: int, children: int, seconds: float = 0.0) -> None:
    """Enqueues others; those of a run that failed must never have been."""
    with on_record(self, name):
        for number in range(children):
            book.delay(f"{name}/try{self.request.retries}/child{number}", seconds)
        time.sleep(seconds)
        Effect.objects.create(name=f"{name}/try{self.request.retries}", value=self.request.id)
        if self.request.retries < failures:
            raise self.retry(countdown=0.1, exc=ValueError(f"planned failure {self.request.retries}"))


@shared_task(base=ReliableTask, bind=True)
def in_pieces(self: Any, name: str, pieces: int, seconds: float = 0.0) -> None:
    """Each run commits one piece and asks for another."""
    with on_record(self, name):
        done = Effect.objects.filter(name__startswith=f"{name}/piece").count()
        Effect.objects.create(name=f"{name}/piece{done}", value=self.request.id)
        time.sleep(seconds)
        if done + 1 < pieces:
            raise self.snooze(0.1)


@shared_task(base=ReliableTask, bind=True)
def fails(self: Any, name: str, seconds: float = 0.0) -> None:
    with on_record(self, name):
        Effect.objects.create(name=f"{name}/undone", value=self.request.id)
        time.sleep(seconds)
        raise ValueError("planned: this job is to fail")


@shared_task(base=ReliableTask, bind=True)
def poison(self: Any, name: str, way: str) -> None:
    """Ends its own process each time it is run."""
    with on_record(self, name):
        Effect.objects.create(name=f"{name}/undone", value=self.request.id)
        if way == "exit":
            os._exit(3)
        if way == "segfault":
            ctypes.string_at(0)
        os.kill(os.getpid(), signal.SIGKILL)
