"""What tests of the outbox share."""

from __future__ import annotations

from typing import Any

import pytest

from reliable_jobs.dispatch.publisher import Publisher
from reliable_jobs.models import Job
from tests.support.inprocess import InProcess


class Undo(Exception):
    pass


@pytest.fixture
def publishes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each publish call had; the calls go on to the broker."""
    sizes: list[int] = []
    real = Publisher.publish

    def counted(self: Publisher, messages: Any, timeout: float | None = None) -> Any:
        sizes.append(len(messages))
        return real(self, messages, timeout)

    monkeypatch.setattr(Publisher, "publish", counted)
    return sizes


def sent(jobs: InProcess) -> set[str]:
    return {message.headers["id"] for message in jobs.take()}


def kept() -> set[str]:
    return {str(pk) for pk in Job.objects.values_list("pk", flat=True)}
