"""The one settings dict: validated as a whole, and each complaint says what to do."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from reliable_jobs import conf
from reliable_jobs.status import FINAL

NUMBERS = [field.name for field in dataclasses.fields(conf.Settings) if field.type in ("int", "float")]
WHOLE = [field.name for field in dataclasses.fields(conf.Settings) if field.type == "int"]
MAY_BE_ZERO = ["WORKER_SWEEP_INTERVAL", "STALL_TIMEOUT", "WORKER_CONN_MAX_AGE", "PRESENCE_INTERVAL"]


def loaded(value: Any) -> conf.Settings:
    with override_settings(RELIABLE_JOBS=value):
        return conf.load()


def complaint(value: Any) -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        loaded(value)
    return str(caught.value)


def test_there_are_numbers_to_check() -> None:
    assert len(NUMBERS) > 10
    assert "MAX_CRASHES" in WHOLE


def test_the_defaults_are_valid_and_an_empty_dict_means_them() -> None:
    assert loaded({}) == conf.Settings()


def test_a_thread_that_reads_while_they_change_keeps_no_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thread of an earlier test left LEASE = 86400 behind: no later test of that process rescued a job.
    reading, changed = threading.Event(), threading.Event()
    load = conf.load

    def slow() -> conf.Settings:
        values = load()
        reading.set()
        assert changed.wait(30)
        return values

    with override_settings(RELIABLE_JOBS={"LEASE": 86400.0}):
        monkeypatch.setattr(conf, "load", slow)
        thread = threading.Thread(target=lambda: conf.settings.LEASE)
        thread.start()
        assert reading.wait(30)
        monkeypatch.undo()
    changed.set()
    thread.join(30)
    assert conf.settings.LEASE == conf.Settings().LEASE


def test_override_settings_is_followed_and_undone() -> None:
    before = conf.settings.GRACE
    with override_settings(RELIABLE_JOBS={"GRACE": before + 7}):
        assert before + 7 == conf.settings.GRACE
        with override_settings(RELIABLE_JOBS={}):
            assert conf.settings.GRACE == conf.Settings().GRACE
        assert before + 7 == conf.settings.GRACE
    assert before == conf.settings.GRACE


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[conf.Settings]:
    """What has been read of Django's settings."""
    seen: list[conf.Settings] = []
    load = conf.load
    monkeypatch.setattr(conf, "load", lambda: (seen.append(load()), seen[-1])[1])
    return seen


def test_the_settings_are_read_once_until_they_change(reads: list[conf.Settings]) -> None:
    with override_settings(RELIABLE_JOBS={"GRACE": 3}):
        assert (conf.settings.GRACE, conf.settings.LEASE, conf.settings.GRACE) == (3, 10.0, 3)
        assert len(reads) == 1


def test_a_change_of_another_setting_costs_no_new_read(reads: list[conf.Settings]) -> None:
    assert conf.settings.GRACE
    before = len(reads)
    with override_settings(DEBUG=True):
        assert conf.settings.GRACE
    assert len(reads) == before


def test_an_unknown_key_names_the_one_that_was_probably_meant() -> None:
    assert complaint({"GRACEE": 1}) == "RELIABLE_JOBS has the unknown key 'GRACEE'. Did you mean 'GRACE'?"


def test_an_unknown_key_like_no_other_lists_the_known_ones() -> None:
    text = complaint({"zzz": 1})
    assert "'zzz'" in text
    assert all(field.name in text for field in dataclasses.fields(conf.Settings))


@pytest.mark.parametrize("key", [1, None, ("GRACE",)])
def test_a_key_that_is_no_text_is_an_unknown_key(key: Any) -> None:
    assert repr(key) in complaint({key: 1})


@pytest.mark.parametrize("value", [None, [], "GRACE=1", 5])
def test_anything_but_a_dict_is_refused(value: Any) -> None:
    assert complaint(value) == f"RELIABLE_JOBS must be a dict, not {type(value).__name__}."


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["5", None, True, [], float("nan"), float("inf"), -1])
def test_a_number_that_is_none_or_out_of_range_is_named_with_its_value(name: str, value: Any) -> None:
    text = complaint({name: value})
    assert f"RELIABLE_JOBS[{name!r}] is {value!r}" in text
    assert "must be" in text


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in MAY_BE_ZERO])
def test_zero_is_refused_where_it_would_stop_the_work(name: str) -> None:
    assert "above zero" in complaint({name: 0})


@pytest.mark.parametrize("name", MAY_BE_ZERO)
def test_zero_switches_off_what_may_be_switched_off(name: str) -> None:
    assert getattr(loaded({name: 0}), name) == 0


@pytest.mark.parametrize("name", WHOLE)
def test_a_count_must_be_a_whole_number(name: str) -> None:
    assert "a whole number" in complaint({name: 1.5})


def test_a_message_carries_a_hundred_jobs_at_most() -> None:
    assert loaded({"DELIVERY_BATCH": 100}).DELIVERY_BATCH == 100
    assert "DELIVERY_BATCH'] is 101; it must be at most 100" in complaint({"DELIVERY_BATCH": 101})


@pytest.mark.parametrize("value", ["ON_COMMIT", "", None, 1])
def test_another_way_of_dispatch_is_refused_naming_the_two(value: Any) -> None:
    text = complaint({"DISPATCH": value})
    assert repr(value) in text
    assert "'on_commit' or 'relay'" in text


def test_retention_refuses_a_status_that_is_not_settled() -> None:
    text = complaint({"RETENTION": {"waiting": 3}})
    assert "waiting" in text
    assert all(status in text for status in FINAL)


def test_retention_keeps_the_default_of_a_status_left_out() -> None:
    kept = loaded({"RETENTION": {"failed": 1}}).RETENTION
    assert kept == {"succeeded": 7, "failed": 1, "cancelled": 30, "expired": 30}


def test_retention_takes_none_for_ever_and_zero_for_at_once() -> None:
    kept = loaded({"RETENTION": {"failed": None, "succeeded": 0}}).RETENTION
    assert (kept["failed"], kept["succeeded"]) == (None, 0)


@pytest.mark.parametrize("days", ["7", True, -1, float("inf")])
def test_retention_takes_only_days(days: Any) -> None:
    assert "RETENTION['failed']" in complaint({"RETENTION": {"failed": days}})


@pytest.mark.parametrize("value", [None, 7, "failed", ["failed"]])
def test_retention_must_be_a_dict(value: Any) -> None:
    assert "RETENTION" in complaint({"RETENTION": value})


def test_the_release_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in conf.RELEASE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert loaded({}).RELEASE == ""
    monkeypatch.setenv("K_REVISION", "shop-00042")
    assert loaded({}).RELEASE == "shop-00042"
    monkeypatch.setenv("SENTRY_RELEASE", " shop@4.2 ")
    assert loaded({}).RELEASE == "shop@4.2"
    monkeypatch.setenv("SENTRY_RELEASE", "x" * 300)
    assert loaded({}).RELEASE == "x" * 200
    assert loaded({"RELEASE": ""}).RELEASE == "", "none is wanted"


@pytest.mark.parametrize("value", [None, 42, "x" * 201, "a\x00"])
def test_a_release_that_does_not_fit_is_refused(value: Any) -> None:
    assert "RELIABLE_JOBS['RELEASE'] is" in complaint({"RELEASE": value})
    assert "at most 200 characters" in complaint({"RELEASE": value})
