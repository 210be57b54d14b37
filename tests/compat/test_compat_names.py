"""Undocumented names that no test of the package misses: what each gives, by itself."""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import current_app
from django.db import DatabaseError, transaction
from django.db.models import UniqueConstraint
from django.db.utils import ConnectionHandler

from reliable_jobs.compat import django as compat_django
from reliable_jobs.compat.celery_worker import check_eta
from reliable_jobs.compat.django import (
    djangos_errors,
    has_partial_indexes,
    locks_no_keys,
    most_parameters,
    settings_of,
    skips_locked,
    start_anew,
    zone_of,
)
from reliable_jobs.compat.django_transaction import doomed_by_error
from reliable_jobs.models import Job

UTC = datetime.timezone.utc


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ConnectionHandler]:
    # A file: Django does not close a database in memory.
    made = ConnectionHandler({"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db")}})
    monkeypatch.setattr(compat_django, "connections", made)
    yield made
    made.close_all()


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


@pytest.mark.django_db
def test_an_error_that_is_caught_still_dooms_the_transaction() -> None:
    with transaction.atomic():
        with contextlib.suppress(ValueError), doomed_by_error("default"):
            raise ValueError
        assert transaction.get_rollback()


@pytest.mark.django_db  # asking for the most parameters connects
def test_what_a_database_can_do_is_read_off_its_features(handler: ConnectionHandler) -> None:
    sqlite = handler["default"]
    assert has_partial_indexes(sqlite)
    assert not locks_no_keys(sqlite)
    assert most_parameters(sqlite) > 900
    assert skips_locked(sqlite) is False
    assert zone_of(sqlite) == "UTC"


def test_the_drivers_errors_become_djangos(handler: ConnectionHandler) -> None:
    with pytest.raises(DatabaseError), djangos_errors(handler["default"]):
        raise sqlite3.OperationalError("locked")


def test_the_constraint_is_checked_as_the_one_that_the_database_has(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    for name in ("check", "_check"):
        monkeypatch.setattr(UniqueConstraint, name, lambda self, *args: checked.append(type(self)) or [], raising=False)
    assert Job.check(databases=["default"]) == []
    assert checked == [UniqueConstraint]
