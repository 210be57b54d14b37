"""The blocks of a bulk: what may happen while its calls are read and encoded, and the server takes rows in."""

from __future__ import annotations

import contextlib
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from reliable_jobs.dispatch import on_commit
from reliable_jobs.enqueue import bulk, outbox
from reliable_jobs.enqueue import insert as rows_module
from reliable_jobs.errors import EnqueueError
from reliable_jobs.models import Job
from tests.enqueue.called import by_celery
from tests.support import inprocess
from tests.support.harness import Stack
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Effect

jobs = inprocess.jobs


@pytest.mark.promise("I1")
def test_a_write_that_fails_leaves_no_hooks_of_the_callers_to_fire(jobs: InProcess) -> None:
    fired: list[str] = []
    with transaction.atomic():
        transaction.on_commit(lambda: fired.append("a mail"))
        taken = str(uuid.uuid4())
        tasks.effect.apply_async(("x",), task_id=taken)
        with pytest.raises(IntegrityError):
            rows_module.insert("default", rows_module.new_row(request_of(taken), later=False, sends=0))
    assert not fired
    assert not Job.objects.exists()


def request_of(job_id: str) -> Any:
    return outbox.Request(uuid.UUID(job_id), by_celery(tasks.effect, uuid.UUID(job_id), ("x",), {}))


@pytest.mark.servers
@pytest.mark.promise("I1")
def test_calls_may_come_from_the_database_that_they_are_written_to(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BLOCK", 3)
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 2)
    with not_for_ever(), transaction.atomic():
        ids = tasks.effect.bulk_delay((str(Job.objects.count()),) for _ in range(10))
    assert Job.objects.count() == len(ids) == 10


@contextlib.contextmanager
def not_for_ever() -> Iterator[None]:
    """The driver waits without an end where something is asked in the middle of a COPY."""

    def over(number: int, frame: Any) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Counted:
    """A value whose encoding asks the database."""

    def __json__(self) -> str:
        return f"one of {Job.objects.count()}"


class Tolerant:
    """And makes do without it."""

    def __json__(self) -> str:
        try:
            return f"one of {Job.objects.count()}"
        except Exception:
            return "nobody knows"


class Saved:
    """And writes to it."""

    def __json__(self) -> str:
        return f"one of {Effect.objects.create(name='saved').pk}"


class HalfRead:
    """And leaves a cursor of the server's open until then."""

    def __init__(self) -> None:
        self.rows: Any = Job.objects.iterator(chunk_size=1)

    def __json__(self) -> str:
        if self.rows is not None:
            next(self.rows, None)
            self.rows = None
        return "one of several"


@pytest.mark.servers
@pytest.mark.promise("I1")
@pytest.mark.parametrize("where", [0, 4])
@pytest.mark.parametrize("kind", [Counted, Tolerant, Saved, HalfRead])
def test_values_may_be_encoded_from_the_database_that_they_are_written_to(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch, where: int, kind: type
) -> None:
    from reliable_jobs.message.decode import arguments

    monkeypatch.setattr(bulk, "BLOCK", 3)
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 1)
    names: list[Any] = [f"plain {number}" for number in range(10)]
    names[where] = kind()
    with not_for_ever(), transaction.atomic():
        ids = tasks.effect.bulk_delay((name,) for name in names)
    written = [arguments(Job.objects.get(pk=job_id))[0][0] for job_id in ids]
    assert written[where].startswith("one of ")
    assert written[:where] + written[where + 1 :] == names[:where] + names[where + 1 :]


@pytest.mark.servers
@pytest.mark.promise("I1")
@pytest.mark.parametrize(
    ("bad", "error"), [(("x", "y", "z"), TypeError), (({"__type__": "uuid", "__value__": 1},), EnqueueError)]
)
def test_an_error_while_the_server_takes_rows_in_writes_none_of_them(
    stack: Stack, idle_queue: str, monkeypatch: pytest.MonkeyPatch, bad: Any, error: type[Exception]
) -> None:
    monkeypatch.setattr(bulk, "BLOCK", 3)
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 1)
    calls = [*((f"fine {number}",) for number in range(7)), bad, ("fine",)]
    with transaction.atomic():
        tasks.effect.delay("stays")
        with pytest.raises(error):
            tasks.effect.bulk_delay(calls)
        tasks.effect.delay("stays as well")
    assert Job.objects.count() == 2


def test_bulks_of_one_transaction_share_the_bound_of_its_commit(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 5)
    with transaction.atomic():
        for _ in range(3):
            tasks.effect.bulk_delay([("x",)] * 3)
    assert len(jobs.take()) == 3
    assert Job.objects.filter(sends=0).count() == 6
