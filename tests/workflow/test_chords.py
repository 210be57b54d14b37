"""Chords of reliable tasks, of every shape: the body is called once, with the parts' results in order, and no result
backend is needed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from celery import chain, chord, group
from django.db import connection
from django.test.utils import CaptureQueriesContext

from reliable_jobs import lifecycle
from reliable_jobs.enqueue import owing
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.sweep import pruner
from reliable_jobs.workflow import looks
from reliable_jobs.workflow.chords import on_finished
from tests.support import inprocess
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect
from tests.workflow.chords import (
    REPLACED_BY,
    adds,
    adds_plain,
    becomes,
    body,
    fails,
    no_backend,
    outcomes,
    part,
    quiet,
    told,
    wrap,
)

jobs = inprocess.jobs


@pytest.fixture(autouse=True)
def _no_backend() -> Iterator[None]:
    with no_backend():
        yield


#: Each with what its body is called with.
SHAPES: dict[str, tuple[Callable[[], Any], Any]] = {
    "two parts": (lambda: chord([part.s(1), part.s(2)], body.s()), [1, 2]),
    "one part": (lambda: chord([part.s(1)], body.s()), [1]),
    "no part": (lambda: chord([], body.s()), []),
    "group and task": (lambda: group(part.s(n) for n in range(3)) | body.s(), [0, 1, 2]),
    "generator": (lambda: chord((part.s(n) for n in range(3)), body.s()), [0, 1, 2]),
    "results ignored": (lambda: chord([quiet.s(1), quiet.s(2)], body.s()), [1, 2]),
    "chains in the header": (lambda: chord([part.s(1) | wrap.s(), part.s(2)], body.s()), [[1], 2]),
    "a generator of chains": (
        lambda: chord((part.s(n) | wrap.s() | wrap.s() for n in (1, 2)), body.s()),
        [[[1]], [[2]]],
    ),
    "a group in the header": (lambda: chord([part.s(1), group(part.s(2), part.s(3)), part.s(4)], body.s()), None),
    "a group at a chain's end": (
        lambda: chord([part.s(1) | group(wrap.s(), wrap.s() | wrap.s()), part.s(2)], body.s()),
        [[[1], [[1]]], 2],
    ),
    "a group at the only chain's end": (
        lambda: chord(group(part.s(1) | group(wrap.s(), wrap.s())), body.s()),
        [[[1], [1]]],
    ),
    "groups at chains' ends, two deep": (
        lambda: chord([part.s(1) | group(wrap.s() | group(wrap.s(), wrap.s()), wrap.s()), part.s(2)], body.s()),
        [[[[[1]], [[1]]], [1]], 2],
    ),
    "a group as the body in the header": (
        lambda: chord([part.s(1), chord([part.s(2), part.s(3)], group(wrap.s(), wrap.s()))], body.s()),
        [1, [[[2, 3]], [[2, 3]]]],
    ),
    "a chord in the header": (
        lambda: chord([chord([part.s(1), part.s(2)], wrap.s()), part.s(3)], body.s()),
        [[[1, 2]], 3],
    ),
    "a chord last in the header": (
        lambda: chord([part.s(3), chord([part.s(1), part.s(2)], wrap.s() | wrap.s())], body.s()),
        [3, [[[1, 2]]]],
    ),
    "three deep": (
        lambda: chord([chord([chord([part.s(1), part.s(2)], wrap.s()), part.s(3)], wrap.s()), part.s(4)], body.s()),
        [[[[[1, 2]], 3]], 4],
    ),
    "a chord in a chain in the header": (
        lambda: chord([part.s(1) | group(wrap.s(), wrap.s()) | wrap.s(), part.s(2)], body.s()),
        [[[[1], [1]]], 2],
    ),
    "a chord as the body": (lambda: chord([part.s(1)], chord([wrap.s(), wrap.s()], body.s())), [[[1]], [[1]]]),
    "a chain as the body": (lambda: chord([part.s(1), part.s(2)], wrap.s() | wrap.s() | body.s()), [[[1, 2]]]),
    "chords in a chain": (lambda: chain(part.s(1), group(wrap.s(), wrap.s()), body.s()), [[1], [1]]),
    "chord behind chord": (
        lambda: chain(group(part.s(1), part.s(2)), group(wrap.s(), wrap.s()), body.s()),
        [[[1, 2]], [[1, 2]]],
    ),
}


@pytest.mark.promise("I3")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_body_is_called_once_with_the_results_in_order(jobs: InProcess, shape: str) -> None:
    make, expected = SHAPES[shape]
    result = make().apply_async()
    jobs.work()  # no sweep is needed
    called = list(Job.objects.filter(task=body.name))
    assert len(called) == 1
    assert called[0].status == "succeeded", called[0].error
    if expected is not None:
        assert jobs.effects(f"body {expected}") == 1
    assert str(called[0].pk) == result.id
    assert set(JobGroup.objects.values_list("state", flat=True)) <= {"done"}
    assert set(Job.objects.values_list("status", flat=True)) == {"succeeded"}


@pytest.mark.promise("I2")
@pytest.mark.parametrize("shape", SHAPES)
def test_prune_at_age_0_after_every_delivery_takes_nothing_that_is_wanted(
    jobs: InProcess, shape: str, settings: Any
) -> None:
    """The last message first, too: the later part of a header before the chain in it."""
    settings.RELIABLE_JOBS = {"RETENTION": dict.fromkeys(("succeeded", "failed", "cancelled", "expired"), 0)}
    make, expected = SHAPES[shape]
    make().apply_async()
    left = jobs.take()
    while left:
        jobs.deliver(left.pop())
        pruner.prune()
        left += jobs.take()
    bodies = Effect.objects.filter(name__startswith="body ")
    assert bodies.count() == 1
    if expected is not None:
        assert bodies.get().name == f"body {expected}"
    pruner.prune()
    assert not Job.objects.exists()
    assert not JobGroup.objects.exists()


@pytest.mark.promise("I3")
def test_a_group_as_the_body_is_called_with_the_results(jobs: InProcess) -> None:
    chord([part.s(1), part.s(2)], group(body.s(), wrap.s() | wrap.s())).apply_async()
    jobs.work()
    assert jobs.effects("body [1, 2]") == jobs.effects("wrap [[1, 2]]") == 1
    assert set(Job.objects.values_list("status", flat=True)) == {"succeeded"}


@pytest.mark.promise("I7")
def test_a_group_as_the_body_fails_with_a_part(jobs: InProcess) -> None:
    bodies = group(body.s().on_error(told.s()), wrap.s().on_error(told.s()))
    result = chord([part.s(1), fails.s()], bodies).apply_async()
    jobs.finish()
    ids = [child.id for child in result.results]
    assert {(jobs.row(one).status, jobs.row(one).reason) for one in ids} == {("failed", "earlier step")}
    assert [jobs.effects(f"told {one}") for one in ids] == [1, 1]


@pytest.mark.promise("I3")
@pytest.mark.parametrize("by", REPLACED_BY)
def test_a_part_that_replaces_itself_has_the_replacements_result(jobs: InProcess, by: str) -> None:
    chord([part.s(1), becomes.si(by), part.s(9)], body.s()).apply_async()
    jobs.finish()
    assert jobs.effects(f"body {[1, REPLACED_BY[by][1], 9]}") == 1, Job.objects.filter(task=body.name).first()
    assert jobs.effects(f"becomes {by}") == 1
    assert set(JobGroup.objects.values_list("state", flat=True)) == {"done"}
    assert not Job.objects.filter(status__in=["waiting", "running"]).exists()


@pytest.mark.promise("I7")
def test_a_part_whose_replacement_fails_comes_back_with_it(jobs: InProcess) -> None:
    result = chord([part.s(1), becomes.si("failure")], body.s().on_error(told.s())).apply_async()
    jobs.finish()
    assert (jobs.row(result).status, jobs.row(result).reason) == ("failed", "earlier step")
    assert jobs.effects(f"told {result.id}") == 1
    with mock.patch.object(fails, "run", return_value=3):
        assert lifecycle.requeue([Job.objects.get(task=fails.name).pk], "default", actor="ann").done
        jobs.finish()
    assert jobs.effects("body [1, [3]]") == 1


@pytest.mark.promise("I2")
def test_a_part_adds_parts_to_its_chord(jobs: InProcess) -> None:
    chord([adds.s(1, 2), part.s(9)], body.s()).apply_async()
    jobs.finish()
    assert jobs.effects("body [0, 1, 2, 'later', 9]") == 1


@pytest.mark.promise("I2")
def test_a_plain_task_that_is_added_to_a_chord_is_waited_for(jobs: InProcess) -> None:
    chord([adds_plain.s("x"), part.s(9)], body.s()).apply_async()
    jobs.work()
    assert jobs.effects("body [None, 'x', 9]") == 1


@pytest.mark.promise("I7")
@pytest.mark.parametrize(
    "make",
    [
        lambda last: chord([part.s(1), fails.s()], last),
        lambda last: chord([fails.s() | part.s(), part.s(1)], last),
        lambda last: chord([part.s(1) | group(fails.s(), part.s()), part.s(1)], last),
        lambda last: chord([chord([fails.s(), part.s(1)], body.s()), part.s(1)], last),
        lambda last: chord([part.s(1), chord([part.s(1)], fails.s() | part.s())], last),
    ],
    ids=["part", "first step", "group at the end", "inner part", "inner body"],
)
def test_a_part_that_fails_fails_the_body_and_tells_its_errbacks_once(jobs: InProcess, make: Any) -> None:
    result = make(body.s().on_error(told.s())).apply_async()
    jobs.finish()
    row = jobs.row(result)
    assert (row.task, row.status, row.reason) == (body.name, "failed", "earlier step")
    assert "Dependency" in row.error
    assert jobs.effects(f"told {result.id}") == 1
    assert "failed" in JobGroup.objects.values_list("state", flat=True)
    assert "open" not in JobGroup.objects.values_list("state", flat=True)


@pytest.mark.promise("I7")
@pytest.mark.parametrize("kind", ["cancelled", "expired"])
def test_a_part_that_never_runs_fails_the_body(jobs: InProcess, kind: str) -> None:
    options = {"expires": 0.001} if kind == "expired" else {"countdown": 60}
    late = part.s(2).set(**options)
    result = chord([part.s(1), late], body.s()).apply_async()
    if kind == "cancelled":
        lifecycle.cancel([Job.objects.get(sends=0).pk], "default", actor="ann")
    jobs.finish()
    jobs.sweep()
    row = jobs.row(result)
    assert (row.status, JobGroup.objects.get().state) == ("failed", "failed")
    assert f"was {kind}" in row.error or f"{kind}" in row.error


@pytest.mark.promise("I7")
def test_a_requeued_part_brings_the_body_back(jobs: InProcess) -> None:
    result = chord([part.s(1), fails.s() | wrap.s()], body.s() | wrap.s()).apply_async()
    jobs.finish()
    failed = Job.objects.get(task=fails.name)
    assert (jobs.row(result).status, jobs.row(result).reason) == ("failed", "earlier step")
    with mock.patch.object(fails, "run", return_value=7):
        lifecycle.requeue([failed.pk], "default", actor="ann")
        assert (jobs.row(result).status, jobs.row(result).due_at) == ("waiting", None)
        jobs.finish()
    assert jobs.effects("body [1, [7]]") == 1
    assert (jobs.row(result).status, JobGroup.objects.get().state) == ("succeeded", "done")


@pytest.mark.promise("I7")
def test_a_body_that_was_never_started_is_not_requeued_by_itself(jobs: InProcess) -> None:
    """It would be called without results. With its part it comes back, also where both are requeued at once."""
    result = chord([part.s(1), fails.s()], body.s()).apply_async()
    jobs.finish()
    row, failed = jobs.row(result), Job.objects.get(task=fails.name)
    assert "requeue that one" in lifecycle.requeue([row.pk], "default", actor="ann").skipped[row.pk]
    report = lifecycle.requeue([row.pk, failed.pk], "default", actor="ann")
    assert (report.done, list(report.skipped)) == ([failed.pk], [row.pk])
    assert report.skipped[row.pk].startswith("held")
    with mock.patch.object(fails, "run", return_value=7):
        jobs.finish()
    assert jobs.effects("body [1, 7]") == 1


@pytest.mark.promise("I7")
def test_a_group_that_fails_again_tells_its_errbacks_again(jobs: InProcess) -> None:
    result = chord([part.s(1), fails.s()], on_finished(body.s().on_error(told.s()), outcomes.s())).apply_async()
    jobs.finish()
    told_once = jobs.effects(f"told {result.id}"), jobs.effects("outcomes [('succeeded', 1), ('failed', None)]")
    assert told_once == (1, 1)
    lifecycle.requeue([Job.objects.get(task=fails.name).pk], "default", actor="ann")
    jobs.finish()
    told_again = jobs.effects(f"told {result.id}"), jobs.effects("outcomes [('succeeded', 1), ('failed', None)]")
    assert told_again == (2, 2)
    assert (jobs.row(result).status, JobGroup.objects.get().state) == ("failed", "failed")


@pytest.mark.promise("I7")
def test_a_cancelled_step_of_a_chain_in_the_header_fails_the_body(jobs: InProcess) -> None:
    result = chord([part.s(1) | wrap.s() | wrap.s(), part.s(2)], body.s()).apply_async()
    (cancelled,) = (job for job in Job.objects.filter(task=part.name) if b"wrap" in bytes(job.payload))
    lifecycle.cancel([cancelled.pk], "default", actor="ann")
    jobs.finish()
    jobs.sweep()
    assert (jobs.row(result).status, JobGroup.objects.get().state) == ("failed", "failed")
    assert f"{cancelled.pk} was cancelled" in jobs.row(result).error
    lifecycle.requeue([cancelled.pk], "default", actor="ann")
    jobs.finish()
    assert jobs.effects("body [[[1]], 2]") == 1


@pytest.mark.promise("I7")
def test_a_revoked_body_cancels_its_group(jobs: InProcess) -> None:
    inner = chord([part.s(1)], wrap.s().set(task_id=str(uuid.uuid4())))
    result = chord([inner, part.s(2)], body.s()).apply_async()
    report = lifecycle.cancel([uuid.UUID(result.id)], "default", actor="ann")
    assert (report.done, jobs.row(result).status) == ([uuid.UUID(result.id)], "cancelled")
    jobs.finish()
    assert (jobs.row(result).status, jobs.effects("body [[[1]], 2]")) == ("cancelled", 0)
    assert set(JobGroup.objects.values_list("state", flat=True)) == {"done", "cancelled"}


@pytest.mark.parametrize(("last", "found"), [(part, [("succeeded", 1), ("succeeded", 2)]), (fails, None)])
def test_on_finished_is_told_what_became_of_each_part(jobs: InProcess, last: Any, found: Any) -> None:
    chord([part.s(1), last.s(2)], on_finished(body.s(), outcomes.s())).apply_async()
    jobs.finish()
    assert jobs.effects(f"outcomes {found or [('succeeded', 1), ('failed', None)]}") == 1
    assert jobs.effects("body [1, 2]") == (1 if found else 0)


@pytest.fixture
def rare_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three parts are many, and take an hour."""
    monkeypatch.setattr(looks, "FEW", 3)
    monkeypatch.setattr(looks, "MOST_PER_SECOND", 3 / 3600)
    yield
    looks._next.clear()


def test_with_many_parts_left_not_every_part_looks(jobs: InProcess, rare_looks: None) -> None:
    asked: list[int] = []
    for size in (3, 4):
        chord([part.s(number) for number in range(size)], body.s()).apply_async()
        with CaptureQueriesContext(connection) as queries:
            jobs.work()
        asked.append(sum("AS unfinished" in str(query["sql"]) for query in queries.captured_queries))
    assert asked == [3, 1]


@pytest.mark.promise("I2")
def test_a_group_whose_parts_end_sooner_than_was_thought_is_swept(jobs: InProcess, rare_looks: None) -> None:
    chord([part.s(number) for number in range(4)], body.s()).apply_async()
    jobs.work()
    assert JobGroup.objects.get().state == "open"
    assert jobs.sweep().decided == 1
    jobs.work()
    assert jobs.effects("body [0, 1, 2, 3]") == 1


def sizes(jobs: InProcess) -> list[int]:
    rows = Job.objects.filter(task=part.name)
    return [len(job.payload) + len(job.envelope) for job in rows]


@pytest.mark.parametrize(
    "many",
    [
        lambda: chain(*(wrap.s() for _ in range(100))),
        lambda: chain(wrap.s(), group(wrap.s() for _ in range(98)), body.s()),
    ],
    ids=["chain", "group"],
)
def test_a_large_body_makes_a_part_a_kilobyte_longer_at_most(jobs: InProcess, many: Any) -> None:
    alone = part.delay(1)
    (plain_size,) = sizes(jobs)
    alone.revoke()
    chord([part.s(1) for _ in range(10)], many()).apply_async()
    assert max(sizes(jobs)) <= plain_size + 1024


def test_the_parts_do_not_carry_the_body(jobs: InProcess) -> None:
    large = body.s("x" * 20_000)
    chord([part.s(1), part.s(2) | wrap.s(), chord([part.s(3)], wrap.s())], large).apply_async()
    assert max(len(job.payload) for job in Job.objects.all()) < 1500
    jobs.finish()
    assert Job.objects.get(task=body.name).status == "succeeded"


@pytest.mark.promise("I2")
def test_a_debt_within_an_equal_one_is_told_apart() -> None:
    """Taken for the inner one, the outer job would seem to have handed nothing on, and would owe for ever."""
    group_id = uuid.uuid4()
    with owing.inheriting(group_id, "") as outer:
        with owing.inheriting(group_id, ""):
            pass
        owing._here.inheritances[-1].next_place()
    assert outer.taken == 1
