"""Undocumented names that no test of the package misses: what each gives, by itself."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import pytest
from celery import current_app
from django.db.utils import ConnectionHandler

from reliable_jobs.compat import django as compat_django
from reliable_jobs.compat.celery_worker import check_eta
from reliable_jobs.compat.django import settings_of, start_anew

UTC = datetime.timezone.utc


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> ConnectionHandler:
    made = ConnectionHandler({"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
    monkeypatch.setattr(compat_django, "connections", made)
    return made


def test_a_connection_is_closed_and_the_next_use_makes_another(handler: ConnectionHandler) -> None:
    before = handler["default"]
    start_anew("default")
    assert handler["default"] is not before


def test_a_connections_settings_have_djangos_defaults(handler: ConnectionHandler) -> None:
    assert settings_of(handler["default"])["AUTOCOMMIT"] is True


@pytest.mark.parametrize("utc", [True, False])
def test_an_eta_that_a_worker_can_wait_for_is_let_pass(utc: bool) -> None:
    check_eta(SimpleNamespace(eta=datetime.datetime(2030, 1, 1, tzinfo=UTC), utc=utc, app=current_app))


def test_an_eta_beyond_the_calendar_is_refused() -> None:
    late = datetime.datetime.max.replace(tzinfo=datetime.timezone(-datetime.timedelta(hours=23)))
    with pytest.raises((OverflowError, ValueError)):
        check_eta(SimpleNamespace(eta=late, utc=True, app=current_app))
