"""Tasks whose calls are rendered for tests, and the rows of calls."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from reliable_jobs import ReliableTask
from reliable_jobs.models import Job


@shared_task(base=ReliableTask, name="test_message.echo")
def echo(*args: Any, **kwargs: Any) -> None:
    return None


@shared_task(base=ReliableTask, name="test_message.login", sensitive=("password",))
def login(user: str, password: str, **more: str) -> None:
    return None


def row_of(result: Any) -> Job:
    return Job.objects.get(pk=result.id)
