"""``countdown``, ``eta`` and ``expires`` of a call, as the row has them."""

from __future__ import annotations

import datetime
import zoneinfo
from typing import Any

import pytest
from django.db import transaction

from reliable_jobs.errors import InvalidOption, UnserialisableArguments
from reliable_jobs.models import Job
from tests.enqueue import outbox_calls
from tests.enqueue.outbox_calls import kept
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp import tasks
from tests.testapp.models import Parent

publishes = outbox_calls.publishes
jobs = inprocess.jobs

UTC = datetime.timezone.utc


def due_in(row: Job) -> float:
    return (row.due_at - row.created_at).total_seconds()


@pytest.mark.parametrize("countdown", [60, 60.5, 1e9])
def test_a_countdown_makes_the_row_due_later_and_publishes_nothing(
    jobs: InProcess, publishes: list[int], countdown: float
) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), countdown=countdown))
    assert abs(due_in(row) - countdown) < 1
    assert (row.sends, publishes) == (0, [])


@pytest.mark.parametrize("countdown", [0, 0.0, -5, None])
def test_no_countdown_means_now(jobs: InProcess, publishes: list[int], countdown: float | None) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), countdown=countdown))
    assert abs(due_in(row)) < 1
    assert (row.sends, publishes) == (1, [1])


@pytest.mark.parametrize("countdown", ["5", True, [], float("nan"), float("inf"), 1e12, datetime.timedelta(seconds=5)])
def test_a_countdown_that_is_no_number_of_seconds_is_refused(jobs: InProcess, countdown: Any) -> None:
    with pytest.raises(InvalidOption, match=r"countdown=.*number of seconds"):
        tasks.effect.apply_async(("x",), countdown=countdown)
    assert kept() == set()


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")

ETA = datetime.datetime(2031, 7, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "eta",
    [ETA, ETA.astimezone(BERLIN), ETA.replace(tzinfo=None), ETA.isoformat(), "2031-07-01T12:00:00Z"],
    ids=["utc", "berlin", "naive", "text", "text with Z"],
)
def test_an_eta_means_the_same_instant_in_every_form(jobs: InProcess, publishes: list[int], eta: Any) -> None:
    """A naive one is UTC whatever the timezone of Django and Celery (here Berlin): that is what Celery makes of it."""
    row = jobs.row(tasks.effect.apply_async(("x",), eta=eta))
    assert row.due_at == ETA
    assert (row.sends, publishes) == (0, [])


def test_a_past_eta_means_now(jobs: InProcess, publishes: list[int]) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), eta=datetime.datetime(2001, 1, 1, tzinfo=UTC)))
    assert abs(due_in(row)) < 1
    assert (row.sends, publishes) == (1, [1])


@pytest.mark.parametrize(
    ("name", "eta"),
    [
        ("eta", 5),
        *((name, bad) for name in ("eta", "expires") for bad in ("soon", [], datetime.date(2031, 1, 1))),
        *((name, datetime.timedelta(1)) for name in ("eta", "expires")),
    ],
    ids=repr,
)
def test_a_time_that_is_none_is_refused(jobs: InProcess, name: str, eta: Any) -> None:
    with pytest.raises(InvalidOption, match=rf"{name}=.*is not a datetime"):
        tasks.effect.apply_async(("x",), **{name: eta})
    assert kept() == set()


def test_countdown_goes_before_eta_as_in_celery(jobs: InProcess) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), countdown=60, eta=ETA))
    assert abs(due_in(row) - 60) < 1


@pytest.mark.parametrize("expires", [ETA, ETA.replace(tzinfo=None), ETA.isoformat()], ids=repr)
def test_expires_as_a_time_is_kept_in_the_row(jobs: InProcess, expires: Any) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), expires=expires))
    assert row.expires_at == ETA
    assert row.sends == 1


@pytest.mark.parametrize("expires", [30, 30.5])
def test_expires_in_seconds_counts_from_now(jobs: InProcess, expires: float) -> None:
    row = jobs.row(tasks.effect.apply_async(("x",), expires=expires))
    assert abs((row.expires_at - row.created_at).total_seconds() - expires) < 1


@pytest.mark.parametrize("expires", [float("nan"), float("inf"), True, 1e12])
def test_expires_in_seconds_must_be_a_number_that_a_clock_can_show(jobs: InProcess, expires: Any) -> None:
    with pytest.raises(InvalidOption, match="expires="):
        tasks.effect.apply_async(("x",), expires=expires)


def test_an_error_at_the_call_leaves_the_transaction_usable(jobs: InProcess) -> None:
    with transaction.atomic():
        Parent.objects.create(name="kept")
        for call in (
            lambda: tasks.effect.delay(object()),
            lambda: tasks.effect.delay(),
            lambda: tasks.effect.apply_async(("x",), task_id="no"),
        ):
            with pytest.raises((UnserialisableArguments, TypeError, InvalidOption)):
                call()
    assert Parent.objects.filter(name="kept").exists()
    assert kept() == set()
