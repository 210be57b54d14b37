"""Chords with plain tasks in the header: ours where the workers of the plain tasks say when these have ended."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from celery import chord, group, shared_task, signature
from django.db import OperationalError
from django.utils import timezone

from reliable_jobs.compat import celery_groups
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.workflow import headers, plain_parts
from reliable_jobs.workflow.chord_backend import ChordBackend
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect
from tests.workflow.chords import body, no_backend, part, plain, told, wrap

jobs = inprocess.jobs


@shared_task(name="test_mixed_chords.breaks")
def breaks(value: Any) -> None:
    raise ValueError(value)


@pytest.fixture
def alone() -> Iterator[None]:
    """Without a result backend no chord can be Celery's."""
    with no_backend():
        yield


#: Each with what its body is called with.
SHAPES: dict[str, tuple[Callable[[], Any], Any]] = {
    "plain last": (lambda: chord([part.s(1), plain.s(2)], body.s()), [1, 2]),
    "plain first": (lambda: chord([plain.s(1), part.s(2), plain.s(3)], body.s()), [1, 2, 3]),
    "behind a reliable one": (lambda: chord([part.s(1) | plain.s(), part.s(2)], body.s()), [1, 2]),
    "in a group": (lambda: chord([part.s(1), group(plain.s(2), part.s(2))], body.s()), [1, 2, 2]),
    "in a group at a chain's end": (lambda: chord([part.s(1) | group(plain.s(), wrap.s())], body.s()), [[1, [1]]]),
    "a chord with a plain body": (lambda: chord([chord([part.s(1)], plain.s()), part.s(2)], body.s()), [[1], 2]),
    "a mixed chord": (lambda: chord([chord([plain.s(1), part.s(2)], wrap.s()), part.s(3)], body.s()), [[[1, 2]], 3]),
    "behind a job": (lambda: part.s(1) | chord([plain.s(), wrap.s()], body.s()), [1, [1]]),
}


@pytest.mark.promise("I2")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_plain_part_is_waited_for(jobs: InProcess, alone: None, shape: str) -> None:
    make, expected = SHAPES[shape]
    make().apply_async()
    jobs.work()  # no sweep is needed
    assert jobs.effects(f"body {expected}") == 1, list(Effect.objects.values_list("name", flat=True))
    assert set(JobGroup.objects.values_list("state", flat=True)) == {"done"}
    assert not Job.objects.filter(status="sent").exists()


@pytest.mark.promise("I7")
def test_a_plain_part_that_fails_fails_the_body(jobs: InProcess, alone: None) -> None:
    result = chord([part.s(1), breaks.s(2)], body.s().on_error(told.s())).apply_async()
    jobs.finish()
    assert "ValueError(2)" in jobs.row(result).error
    assert jobs.effects(f"told {result.id}") == 1


@pytest.mark.promise("I3")
def test_a_plain_part_that_reports_twice_counts_once(jobs: InProcess, alone: None) -> None:
    chord([part.s(1), plain.s(2)], body.s()).apply_async()
    messages = jobs.take()
    for message in [*messages, *messages]:
        jobs.deliver(message)
    jobs.work()
    assert jobs.effects("body [1, 2]") == Job.objects.filter(task=body.name).count() == 1


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (lambda: [part.s(1), plain.s(2) | part.s()], "follows it"),
        (lambda: [part.s(1), signature("nobody.knows", app=app)], "not registered"),
        (lambda: [part.s(1), chord([plain.s(2)], body.s())], "follows it"),
    ],
    ids=["followed", "unknown", "inner chord without reliable tasks"],
)
def test_any_other_chord_is_celerys_and_that_is_said_once(
    jobs: InProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, header: Any, why: str
) -> None:
    monkeypatch.setattr(headers, "_said", set())
    below = mock.Mock()
    with no_backend():
        monkeypatch.setattr(app.backend, "wrapped", below)
        for _ in range(2):
            chord(header(), body.s()).apply_async()
    assert below.apply_chord.call_count >= 2
    assert caplog.text.count("is Celery's own") == caplog.text.count(why) == 1
    assert not JobGroup.objects.exists()


def test_a_header_is_known_while_its_chord_is_called(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chord in a header the inner one's; and none behind a call that failed."""
    seen: list[list[str]] = []

    def look(*args: Any, **kwargs: Any) -> None:
        header = celery_groups.header_of_chord()
        seen.append([task.task for task in header.tasks])
        if len(seen) == 3:
            raise ZeroDivisionError

    with no_backend():
        monkeypatch.setattr(type(app.backend), "apply_chord", look)
        chord([chord([plain.s(1)], wrap.s()), part.s(2)], body.s()).apply_async()
        with pytest.raises(ZeroDivisionError):
            chord([wrap.s(1)], body.s()).apply_async()
    assert seen == [["celery.chord", part.name], [plain.name], [wrap.name]]
    assert celery_groups.header_of_chord() is None


def unreported(jobs: InProcess) -> None:
    """A chord whose plain part has ended, and whose worker has died before it said so."""
    chord([part.s(1), plain.s(2)], body.s()).apply_async()
    with mock.patch.object(ChordBackend, "takes_end_of_part", return_value=True):
        jobs.work()
    assert JobGroup.objects.get().state == "open"


@pytest.mark.promise("I2")
def test_the_result_backend_is_asked_where_a_worker_died_unheard(jobs: InProcess) -> None:
    unreported(jobs)
    sent = Job.objects.filter(status="sent")
    jobs.sweep()
    assert sent.count() == 1, "its worker has a moment to say so"
    sent.update(check_at=timezone.now() - datetime.timedelta(seconds=1))
    jobs.sweep()
    jobs.work()
    assert jobs.effects("body [1, 2]") == 1


def test_a_part_that_goes_on_is_asked_for_ever_less_often(jobs: InProcess) -> None:
    chord([part.s(1), plain.s(2)], body.s()).apply_async()
    sent = Job.objects.filter(status="sent")
    minute = datetime.timedelta(seconds=60)
    sent.update(finished_at=timezone.now() - minute, check_at=timezone.now() - datetime.timedelta(seconds=1))
    jobs.sweep()
    assert sent.get().check_at > timezone.now() + minute * 0.9
    jobs.work()
    assert (jobs.effects("body [1, 2]"), sent.count()) == (1, 0)


@pytest.mark.promise("I2")
def test_a_worker_says_it_again_where_the_database_was_away(jobs: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_parts, "PAUSES", (0.0, 0.0))
    report, tries = plain_parts._report, []

    def fails_twice(*args: Any) -> bool:
        tries.append(args)
        if len(tries) < 3:
            raise OperationalError("the connection is closed")
        return report(*args)

    monkeypatch.setattr(plain_parts, "_report", fails_twice)
    chord([part.s(1), plain.s(2)], body.s()).apply_async()
    jobs.work()
    assert (len(tries), jobs.effects("body [1, 2]")) == (3, 1)
