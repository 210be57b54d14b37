"""Tasks and a result backend for tests of chords."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chord, group, shared_task, signature
from celery.backends.base import DisabledBackend
from django.db import connection

from reliable_jobs import ReliableTask
from reliable_jobs.results import LedgerBackend
from tests.celery_app import app
from tests.support.harness import Stack
from tests.testapp.models import Effect


@contextlib.contextmanager
def no_backend() -> Iterator[None]:
    """No result backend at all."""
    before = app._backend_cache, app._local.__dict__.pop("backend", None)
    app._backend_cache = LedgerBackend(app, wrapped=DisabledBackend(app))
    try:
        yield
    finally:
        app._backend_cache = before[0]
        app._local.__dict__.pop("backend", None)
        if before[1] is not None:
            app._local.backend = before[1]


@shared_task(base=ReliableTask, name="test_chords.part")
def part(*args: Any) -> Any:
    """Returns what it is called with."""
    Effect.objects.create(name=f"part {args}")
    return args[-1]


@shared_task(base=ReliableTask, name="test_chords.quiet", ignore_result=True)
def quiet(value: Any) -> Any:
    return value


@shared_task(base=ReliableTask, name="test_chords.fails")
def fails(*args: Any) -> None:
    raise ValueError("no")


@shared_task(base=ReliableTask, name="test_chords.body")
def body(values: Any, *args: Any) -> Any:
    Effect.objects.create(name=f"body {values}")
    return values


@shared_task(base=ReliableTask, name="test_chords.adds", bind=True)
def adds(self: ReliableTask, *more: Any) -> int:
    """Adds tasks to its chord; the last of them is called by another one."""
    for value in more:
        self.add_to_chord(part.s(value))
    called_later = self.add_to_chord(part.s("later"), lazy=True)
    calls.delay(called_later)
    return 0


@shared_task(name="test_chords.plain")
def plain(value: Any) -> Any:
    return value


@shared_task(base=ReliableTask, name="test_chords.adds_plain", bind=True)
def adds_plain(self: ReliableTask, value: Any) -> None:
    self.add_to_chord(plain.s(value))


@shared_task(base=ReliableTask, name="test_chords.calls")
def calls(later: Any) -> None:
    signature(later).delay()


@shared_task(base=ReliableTask, name="test_chords.told")
def told(task_id: str) -> None:
    Effect.objects.create(name=f"told {task_id}")


@shared_task(base=ReliableTask, name="test_chords.outcomes")
def outcomes(found: list[dict[str, Any]]) -> None:
    Effect.objects.create(name=f"outcomes {[(one['status'], one['result']) for one in found]}")


#: What a part is replaced with, and the part's result then.
REPLACED_BY: dict[str, tuple[Callable[[], Any], Any]] = {
    "a task": (lambda: part.si(7), 7),
    "a plain task": (lambda: plain.si(7), 7),
    "a chain": (lambda: part.si(7) | wrap.s() | wrap.s(), [[7]]),
    "a chain with a plain end": (lambda: part.si(7) | plain.s(), 7),
    "a group": (lambda: group(part.si(7), part.si(8)), [7, 8]),
    "a group of chains": (lambda: group(part.si(7) | wrap.s(), part.si(8) | wrap.s()), [[7], [8]]),
    "a chain to a group": (lambda: part.si(7) | group(wrap.s(), wrap.s()), [[7], [7]]),
    "a chord": (lambda: chord([part.si(7), part.si(8)], wrap.s()), [[7, 8]]),
    "a chord of chords": (lambda: chord([chord([part.si(7)], wrap.s()), part.si(8)], wrap.s()), [[[[7]], 8]]),
    "one that replaces itself": (lambda: part.si(1) | becomes.si("a group"), [7, 8]),
}


@shared_task(base=ReliableTask, name="test_chords.becomes", bind=True)
def becomes(self: ReliableTask, by: str) -> Any:
    """Replaces itself."""
    Effect.objects.create(name=f"becomes {by}")
    raise self.replace(REPLACED_BY[by][0]() if by in REPLACED_BY else part.si(7) | fails.si() | wrap.s())


@shared_task(base=ReliableTask, name="test_chords.wrap")
def wrap(value: Any) -> Any:
    """A list with its argument in it."""
    Effect.objects.create(name=f"wrap {value}")
    return [value]


@pytest.fixture(params=["read committed", "repeatable read"])
def isolation(stack: Stack, request: pytest.FixtureRequest) -> Iterator[str]:
    """The level that every new connection begins its transactions with."""
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation TO '{request.param}'")
    connection.close()
    yield request.param
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" RESET default_transaction_isolation')
    connection.close()
