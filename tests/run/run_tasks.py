"""Tasks for tests of runs, and what their hooks have heard."""

from __future__ import annotations

from typing import Any

import pytest
from celery import shared_task
from celery.exceptions import Ignore
from django.db import connection

from reliable_jobs import ReliableTask
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

HOOKS: list[tuple[str, Any]] = []


@pytest.fixture(autouse=True)
def forget_hooks() -> None:
    HOOKS.clear()


class Hooked(ReliableTask):
    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        HOOKS.append(("on_success", retval))

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HOOKS.append(("on_failure", repr(exc)))

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HOOKS.append(("on_retry", repr(exc)))

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        HOOKS.append(("after_return", status))


@shared_task(base=Hooked, name="test_execution.hooked", bind=True)
def hooked(self: Any, what: str = "") -> str:
    Effect.objects.create(name="hooked")
    if what == "fail":
        raise ValueError("no")
    if what == "retry" and self.request.retries == 0:
        raise self.retry(countdown=0, exc=ValueError("again"))
    if what == "ignore":
        raise Ignore("as it wished")
    if what == "snooze" and Effect.objects.filter(name="hooked").count() < 2:
        raise self.snooze(0)
    if what == "exit":
        raise SystemExit(3)
    return "value"


@shared_task(base=ReliableTask, name="test_execution.raises")
def raises(text: str, times: int = 1) -> None:
    raise ValueError(text * times)


@shared_task(base=ReliableTask, name="test_execution.looks", bind=True)
def looks(self: Any) -> dict[str, Any]:
    request = self.request
    return {
        "id": request.id,
        "retries": request.retries,
        "key": self.idempotency_key,
        "redelivered": bool((request.delivery_info or {}).get("redelivered")),
        "eager": request.is_eager,
        "atomic": connection.in_atomic_block,
    }


def again(jobs: InProcess, result: Any, **pointer: Any) -> inprocess.Delivered:
    """The job's message once more."""
    return jobs.deliver(jobs.message(result, **pointer))
