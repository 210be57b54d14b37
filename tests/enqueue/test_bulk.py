"""``bulk_delay``: many calls become the rows that single calls would, or none of them do."""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import shared_task
from django.db import connection, transaction

from reliable_jobs import ReliableTask
from reliable_jobs.dispatch import on_commit
from reliable_jobs.enqueue import bulk
from reliable_jobs.enqueue import insert as rows_module
from reliable_jobs.enqueue.template import template_of
from reliable_jobs.errors import InvalidOption, UnserialisableArguments
from reliable_jobs.models import Job
from tests.enqueue.called import celerys, echo
from tests.support import inprocess
from tests.support.harness import Stack
from tests.support.inprocess import InProcess
from tests.testapp import tasks

rows = inprocess.rows
jobs = inprocess.jobs


@shared_task(base=ReliableTask, name="template.secret", sensitive=True)
def secret(x: Any) -> None: ...


CALLS: list[Any] = [("a",), ["b"], {"name": "c"}, {"name": "d\\\t\n\r'\"\x00ü\u2028", "value": "\\N"}, ("e", "\\.")]


@pytest.mark.promise("I1")
def test_many_calls_become_the_rows_that_single_calls_would(rows: InProcess) -> None:
    ids = tasks.effect.bulk_delay(CALLS, queue="elsewhere", priority=3, countdown=60)
    single = [
        tasks.effect.apply_async(
            *(((), call) if isinstance(call, dict) else (call, {})), queue="elsewhere", priority=3, countdown=60
        )
        for call in CALLS
    ]
    skipped = {"id", "root_id", "created_at", "due_at"}
    for one, other in zip(ids, single, strict=True):
        bulk_row, single_row = Job.objects.get(pk=one), Job.objects.get(pk=other.id)
        assert bulk_row.root_id == bulk_row.pk
        assert abs((bulk_row.due_at - single_row.due_at).total_seconds()) < 5
        for field in Job._meta.fields:
            mine, theirs = getattr(bulk_row, field.name), getattr(single_row, field.name)
            if field.name == "envelope":
                mine, theirs = json.loads(mine), json.loads(theirs)
                mine["headers"].setdefault("kwargsrepr", "{}"), theirs["headers"].setdefault("kwargsrepr", "{}")
                mine["headers"].setdefault("argsrepr", "()"), theirs["headers"].setdefault("argsrepr", "()")
            if field.name == "payload":
                mine, theirs = bytes(mine), bytes(theirs)
            assert field.name in skipped or mine == theirs, field.name


def one_dict_again_and_again() -> Iterator[Any]:
    call: dict[str, Any] = {}
    for number in range(4):
        call["name"] = f"n{number}"
        yield call


def one_list_again_and_again() -> Iterator[Any]:
    call: list[Any] = [None]
    for number in range(4):
        call[0] = f"n{number}"
        yield call


def one_value_again_and_again() -> Iterator[Any]:
    value: list[str] = [""]
    for number in range(4):
        value[0] = f"n{number}"
        yield (value,)


@pytest.mark.parametrize("calls", [one_dict_again_and_again, one_list_again_and_again, one_value_again_and_again])
def test_a_call_holds_what_it_held_when_it_was_given(rows: InProcess, calls: Callable[[], Iterator[Any]]) -> None:
    from reliable_jobs.message.decode import arguments

    written = [arguments(Job.objects.get(pk=job_id)) for job_id in tasks.effect.bulk_delay(calls())]
    values = [args[0] if args else kwargs["name"] for args, kwargs in written]
    assert [value[0] if isinstance(value, list) else value for value in values] == ["n0", "n1", "n2", "n3"]


def test_the_ids_of_many_jobs_are_random_uuids() -> None:
    ids = list(itertools.islice(rows_module.random_ids(), 5000))
    assert len(set(ids)) == 5000
    parsed = [uuid.UUID(one) for one in ids]
    assert [str(one) for one in parsed] == ids
    assert {(one.version, one.variant) for one in parsed} == {(4, uuid.RFC_4122)}
    # Each of the 122 other bits is set in about half of them; 3,000 of 5,000 would be 14 standard deviations off.
    for bit in range(128):
        if not (76 <= bit < 80 or 62 <= bit < 64):
            assert 2000 < sum(one.int >> bit & 1 for one in parsed) < 3000, bit


def test_many_jobs_run(jobs: InProcess) -> None:
    with transaction.atomic():
        tasks.effect.bulk_delay([(f"bulk {n}",) for n in range(7)])
        assert not jobs.take()
    jobs.finish()
    assert [jobs.effects(f"bulk {n}") for n in range(7)] == [1] * 7


@pytest.mark.promise("I1")
def test_an_error_in_one_call_writes_none(jobs: InProcess) -> None:
    for bad, error in ((("x", "y", "z"), TypeError), ((object(),), UnserialisableArguments), (5, TypeError)):
        with pytest.raises(error):
            tasks.effect.bulk_delay([("fine",), bad, ("fine",)])
        assert not Job.objects.exists()
    assert not jobs.take()


@pytest.mark.promise("I1")
def test_a_savepoint_rolled_back_takes_its_bulk_along(jobs: InProcess) -> None:
    with transaction.atomic():
        tasks.effect.delay("stays")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            tasks.effect.bulk_delay([("goes",)] * 3)
            raise ZeroDivisionError
    assert len(jobs.take()) == 1
    assert Job.objects.count() == 1


def test_more_than_one_commit_can_publish_are_left_to_the_sweepers(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 3)
    tasks.effect.bulk_delay([(f"few {n}",) for n in range(3)])
    assert len(jobs.take()) == 3
    tasks.effect.bulk_delay((f"many {n}",) for n in range(4))
    assert not jobs.take()
    assert set(Job.objects.values_list("sends", flat=True)) == {0, 1}
    jobs.sweep()
    assert len(jobs.take()) == 4


@pytest.mark.parametrize("number", [1, 3, 5, 6, 7])
def test_what_one_commit_can_publish_may_come_in_several_blocks(
    jobs: InProcess, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(bulk, "BLOCK", 2)
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 6)
    ids = tasks.effect.bulk_delay((f"call {n}",) for n in range(number))
    sent = number if number <= 6 else 0
    assert len(jobs.take()) == Job.objects.filter(sends=1).count() == sent
    assert {str(job_id) for job_id in Job.objects.values_list("pk", flat=True)} == set(ids)
    assert len(ids) == number


@pytest.mark.parametrize("name", ["task_id", "key", "key_forever", "transactional", "shadow"])
def test_what_belongs_to_one_job_is_refused(rows: InProcess, name: str) -> None:
    with pytest.raises(InvalidOption, match=name):
        tasks.effect.bulk_delay([("x",)], **{name: "x"})


def test_without_calls_nothing_happens(rows: InProcess, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert tasks.effect.bulk_delay([]) == []


def test_sensitive_calls_stay_hidden_in_bulk(rows: InProcess) -> None:
    (one, _) = secret.bulk_delay([("hunter2",), ("hunter3",)])
    assert "hunter" not in Job.objects.get(pk=one).envelope


@pytest.mark.parametrize(
    "value", [decimal.Decimal("1.5"), datetime.date(2031, 2, 3), uuid.UUID(int=7), b"\x00\xff", {"a": [1, None]}]
)
def test_a_value_comes_back_as_it_was_by_way_of_a_template(rows: InProcess, value: Any) -> None:
    from reliable_jobs.message.decode import arguments

    template_of(echo, celerys(echo), (1,), {})
    row = Job.objects.get(pk=echo.delay(value, k=value).id)
    assert arguments(row) == ([value], {"k": value})


def test_a_task_that_fans_out_is_its_jobs_parent(jobs: InProcess) -> None:
    parent = tasks.fan_out.delay(3)
    jobs.finish()
    children = Job.objects.filter(task=tasks.effect.name)
    assert children.count() == 3
    assert {(child.parent_id, child.root_id) for child in children} == {(uuid.UUID(parent.id),) * 2}


@pytest.mark.servers
@pytest.mark.promise("I1")
def test_a_bulk_goes_by_copy_and_every_job_of_it_runs_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_commit, "MAX_ON_COMMIT", 200)
    with stack.own_queue():
        with transaction.atomic():
            ids = tasks.effect.bulk_delay((f"copied {n}",) for n in range(300))
        assert Job.objects.filter(sends=0).count() == 300
        stack.worker(concurrency=2)
        stack.all_end(sweeping=True)
        assert len(set(ids)) == 300
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*), count(DISTINCT name) FROM testapp_effect WHERE name LIKE 'copied %'")
            assert cursor.fetchone() == (300, 300)
