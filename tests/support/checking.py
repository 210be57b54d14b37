"""Celery apps of a test's own, and what Django's system checks say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, _state
from django.core import checks
from django.core.checks import CheckMessage

from reliable_jobs import ReliableTask

Configure = Callable[..., Celery]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Make a Celery app with settings of its own the current one."""
    monkeypatch.delenv("BROKER_URL", raising=False)
    before = _state._tls.current_app

    def configure(*, task_cls: Any = None, **conf: Any) -> Celery:
        app = Celery("checked", broker=conf.pop("broker", "memory://"), task_cls=task_cls, set_as_current=False)
        app.conf.update(conf)
        app.set_current()
        return app

    yield configure
    _state._set_current_app(before)


def add(app: Celery, name: str, base: type | None = ReliableTask, **options: Any) -> None:
    """A task of this app alone; a shared one would be every app's from then on."""

    def body() -> None:
        return None

    app.task(base=base, name=name, shared=False, **options)(body)


def found(*, deploy: bool = False, **kwargs: Any) -> dict[str, CheckMessage]:
    """What Django's own check run says of ours, by id."""
    messages = checks.run_checks(include_deployment_checks=deploy, **kwargs)
    ours = [message for message in messages if str(message.id).startswith("reliable_jobs.")]
    assert all(message.hint for message in ours)
    return {str(message.id).removeprefix("reliable_jobs."): message for message in ours}


def about(app: Celery, identifier: str) -> str:
    """The message of one id, with only the tasks that this app defines itself."""
    message = found().get(identifier)
    return str(message.msg) if message else ""
