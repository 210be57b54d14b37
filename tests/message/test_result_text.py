"""What becomes of return values: stored as Celery would store them, and no reason to fail where nobody wants them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import group, shared_task
from celery.backends.base import DisabledBackend
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import GroupResult, result_from_tuple
from django.test import override_settings
from kombu.exceptions import ContentDisallowed

from reliable_jobs import ReliableTask
from reliable_jobs.admin.content import shown_result
from reliable_jobs.message import result_text
from reliable_jobs.results import result_of
from tests.celery_app import app
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

jobs = inprocess.jobs
RETURNS: list[Any] = []


@shared_task(base=ReliableTask, name="test_result_text.returns")
def returns(*args: Any) -> Any:
    Effect.objects.create(name="returned")
    value = RETURNS[0]
    return value() if callable(value) else value


@shared_task(base=ReliableTask, name="test_result_text.ends")
def ends(*args: Any) -> None:
    pass


@shared_task(base=ReliableTask, name="test_result_text.takes")
def takes(value: Any) -> None:
    Effect.objects.create(name="taken", value=str(len(value)))


class Unserialisable:
    pass


class TooSlow:
    def __json__(self) -> Any:
        raise SoftTimeLimitExceeded


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    RETURNS.clear()


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets entries of Celery's settings for a time."""

    def set_conf(**entries: Any) -> None:
        for name, value in entries.items():
            monkeypatch.setitem(app.conf.changes, name, value)

    return set_conf


@pytest.fixture
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    disabled = DisabledBackend(app=app)
    for task in (returns, ends, takes):
        monkeypatch.setattr(app.tasks[task.name], "_backend", disabled, raising=False)
        monkeypatch.setattr(type(app.tasks[task.name]), "backend", disabled)


# --- E5 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_backend")
@pytest.mark.parametrize("value", [Unserialisable(), {1: Unserialisable()}, "x" * 2000], ids=["object", "dict", "big"])
@override_settings(RELIABLE_JOBS={"MAX_RESULT_BYTES": 1000})
def test_e5_a_value_that_nobody_stores_fails_no_job(jobs: InProcess, value: Any) -> None:
    RETURNS.append(value)
    job = jobs.run(returns)
    assert (job.status, job.result, job.error) == ("succeeded", None, "")
    assert jobs.effects("returned") == 1


@pytest.mark.usefixtures("no_backend")
def test_e5_an_unstorable_value_for_the_next_step_fails_its_job(jobs: InProcess) -> None:
    RETURNS.append(Unserialisable())
    result = (returns.s() | ends.s()).delay()
    jobs.work()
    job = jobs.row(result.parent)
    assert job.status == "failed"
    assert "can't be stored" in job.error
    assert jobs.effects("returned") == 0


@pytest.mark.parametrize(("serializer", "value"), [("pickle", {1, 2}), ("yaml", {1: "é"}), ("json", {"a": "\0"})])
def test_e5_the_projects_serializer_is_honoured(jobs: InProcess, conf: Any, serializer: str, value: Any) -> None:
    conf(result_serializer=serializer, result_accept_content=[serializer, "json"])
    RETURNS.append(value)
    job = jobs.run(returns)
    assert job.status == "succeeded", job.error
    assert result_of(job) == value


def test_e5_content_that_celery_does_not_accept_is_not_decoded(jobs: InProcess, conf: Any) -> None:
    conf(result_serializer="pickle", result_accept_content=["pickle"])
    RETURNS.append({1, 2})
    job = jobs.run(returns)
    conf(result_accept_content=["json"])
    with pytest.raises(ContentDisallowed):
        result_of(job)
    assert "not decoded here" in shown_result(job).note


def test_e5_a_value_that_looks_like_a_wrapped_one_is_not_taken_for_it(conf: Any) -> None:
    conf(result_accept_content=["pickle", "json"])
    wrapped = result_text.encode({1, 2}, "pickle")
    forged = json.loads(wrapped)
    assert result_text.decode(result_text.encode(forged, "json")) == forged
    assert result_text.decode(wrapped) == {1, 2}


def test_a_soft_time_limit_while_a_result_is_serialised_reaches_the_task(jobs: InProcess) -> None:
    RETURNS.append(TooSlow())
    job = jobs.run(returns)
    assert (job.status, job.error.split(":")[0].split("(")[0]) == ("failed", "SoftTimeLimitExceeded")


# --- C8 ---------------------------------------------------------------------------------------------------------------


@override_settings(RELIABLE_JOBS={"MAX_RESULT_BYTES": 1000})
def test_c8_a_result_over_its_limit_fails_the_job_that_returned_it(jobs: InProcess) -> None:
    RETURNS.append("x" * 2000)
    job = jobs.run(returns)
    assert job.status == "failed"
    assert job.error.startswith("ResultTooLarge")
    assert "2002 bytes" in job.error
    assert "MAX_RESULT_BYTES" in job.error
    assert jobs.effects("returned") == 0


# --- C10 --------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I3")
def test_c10_an_async_result_is_stored_as_celery_stores_it(jobs: InProcess) -> None:
    RETURNS.append(lambda: ends.delay())
    job = jobs.run(returns)
    assert job.status == "succeeded", job.error
    started = result_from_tuple(result_of(job), app=app)
    jobs.work()
    assert jobs.row(started).status == "succeeded"
    result = app.AsyncResult(str(job.pk))
    assert result.get(timeout=1) == [[str(started.id), None], None]


def test_c10_a_group_result_is_stored_as_celery_stores_it(jobs: InProcess) -> None:
    kept: list[GroupResult] = []

    def start() -> GroupResult:
        kept.append(group(ends.s(), ends.s()).delay())
        return kept[0]

    RETURNS.append(start)
    job = jobs.run(returns)
    assert job.status == "succeeded", job.error
    assert result_of(job) == json.loads(json.dumps(kept[0].as_tuple()))


def test_c10_a_following_step_gets_it_in_the_same_form(jobs: InProcess) -> None:
    RETURNS.append(lambda: ends.delay())
    (returns.s() | takes.s()).delay()
    jobs.finish()
    assert Effect.objects.filter(name="taken", value="2").count() == 1
