"""Groups and the rows that owe them, made by hand: what decides a group, and who may come in between. PostgreSQL."""

from __future__ import annotations

import os
import threading
import uuid
from typing import Any
from unittest import mock

import pytest
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.lifecycle import groups, sql
from reliable_jobs.message import result_text
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.status import GroupState, Status
from reliable_jobs.sweep import pruner, sweeper
from reliable_jobs.workflow import chords
from tests.celery_app import app
from tests.support.harness import Stack, Transaction, wait_until
from tests.support.threads import Aside
from tests.test_models import job
from tests.workflow import chords as shared
from tests.workflow.chords import body

isolation = shared.isolation
pytestmark = pytest.mark.servers

#: How often two last parts commit together, for each isolation level.
ROUNDS = int(os.environ.get("TEST_ROUNDS", "30"))


def opened(*statuses: str, owes: uuid.UUID | None = None, **values: Any) -> JobGroup:
    """A group, and parts in these states that owe it."""
    body_id = uuid.uuid4()
    group = JobGroup(
        id=uuid.uuid4(),
        body_id=body_id,
        body=result_text.encode(body.s().set(task_id=str(body_id)), "json"),
        owes=owes,
        **values,
    )
    group.save(force_insert=True)
    for number, status in enumerate(statuses):
        add(group, status, number)
    return group


def add(group: JobGroup, status: str, number: int) -> Job:
    ended = {} if status in ("waiting", "running") else {"finished_at": timezone.now()}
    made = job(owes=group.pk, place=f"{number:06x}", status=status, result=str(number), error="it broke", **ended)
    made.save(force_insert=True)
    return made


def parts(group: JobGroup) -> list[Job]:
    return list(Job.objects.filter(owes=group.pk).order_by("place"))


def end(part: Job, status: str = Status.SUCCEEDED) -> None:
    """As a settlement does it, and what comes after its commit."""
    with transaction.atomic():
        Job.objects.filter(pk=part.pk).update(status=status, finished_at=timezone.now())
    chords.part_ended(app, part.owes, "default")  # type: ignore[arg-type]


def state(group: JobGroup) -> str:
    return JobGroup.objects.get(pk=group.pk).state


def bodies(group: JobGroup) -> list[Job]:
    return list(Job.objects.filter(pk=group.body_id))


def test_the_last_part_writes_the_body_with_the_results_in_order(stack: Stack) -> None:
    group = opened("succeeded", "waiting", "waiting")
    first, second = parts(group)[1:]
    end(second)
    assert (state(group), bodies(group)) == ("open", [])
    end(first)
    (written,) = bodies(group)
    assert (state(group), written.task) == ("done", body.name)
    assert b"[0, 1, 2]" in bytes(written.payload)
    assert not chords.decide(app, group.pk, "default")


@pytest.mark.promise("I3")
def test_two_last_parts_that_commit_together_write_one_body(stack: Stack, isolation: str) -> None:
    """At least one of them sees that nothing is left, and the lock makes it one."""
    for _ in range(ROUNDS):
        group = opened("waiting", "waiting")
        barrier = threading.Barrier(2)

        def end_together(part: Job, barrier: threading.Barrier = barrier) -> None:
            with transaction.atomic():
                Job.objects.filter(pk=part.pk).update(status=Status.SUCCEEDED, finished_at=timezone.now())
                barrier.wait(20)
            chords.part_ended(app, part.owes, "default")  # type: ignore[arg-type]

        threads = [Aside(lambda part=part: end_together(part)) for part in parts(group)]
        for thread in threads:
            thread.value()
        assert (state(group), len(bodies(group))) == ("done", 1)


@pytest.mark.promise("I2")
def test_a_part_requeued_between_the_look_and_the_decision_is_waited_for(stack: Stack, isolation: str) -> None:
    """The requeue holds the group's lock; the decision waits for it, and then looks at what is committed."""
    group = opened("succeeded", "failed")
    failed = parts(group)[1]
    requeue = Transaction(lambda: lifecycle.requeue([failed.pk], "default", actor="ann"))
    assert sql.rows("default", groups.OWED, group.pk) == [(0,)]
    deciding = Aside(lambda: chords.part_ended(app, group.pk, "default"))
    wait_until(lambda: stack.sessions("wait_event_type = 'Lock'"), "the decision waits")
    requeue.end()
    deciding.value()
    assert (state(group), bodies(group)) == ("open", [])
    end(failed)
    assert (state(group), len(bodies(group))) == ("done", 1)


@pytest.mark.promise("I7")
def test_a_requeue_during_the_decision_opens_the_group_again(stack: Stack) -> None:
    group = opened("succeeded", "failed")
    failed = parts(group)[1]
    deciding = Transaction(lambda: chords.decide(app, group.pk, "default"))
    requeueing = Aside(lambda: lifecycle.requeue([failed.pk], "default", actor="ann"))
    wait_until(lambda: stack.sessions("wait_event_type = 'Lock'"), "the requeue waits")
    deciding.end()
    requeueing.value()
    (held,) = bodies(group)
    assert (state(group), held.status, held.due_at) == ("open", "waiting", None)
    end(failed)
    (written,) = bodies(group)
    assert (state(group), written.status, written.due_at is None) == ("done", "waiting", False)
    assert b"[0, null]" in bytes(written.payload)  # a requeue empties the result


@pytest.mark.promise("I7")
def test_a_requeue_of_a_part_that_succeeded_opens_no_failed_group(stack: Stack) -> None:
    group = opened("succeeded", "failed")
    assert chords.decide(app, group.pk, "default")
    succeeded, failed = parts(group)
    lifecycle.requeue([succeeded.pk], "default", actor="ann")
    assert (state(group), bodies(group)[0].status) == ("failed", "failed")
    lifecycle.requeue([failed.pk], "default", actor="ann")
    end(failed)
    assert state(group) == "open"
    end(succeeded)
    assert state(group) == "done"


@pytest.mark.promise("I2")
def test_a_decision_that_nobody_made_is_made_by_the_sweep(stack: Stack) -> None:
    """Killed between the COMMIT and the look; Celery may have acknowledged the message."""
    group, unfinished = opened("succeeded"), opened("succeeded", "running")
    inner = opened("waiting", owes=unfinished.pk)
    end_of_all = opened("succeeded", owes=opened().pk)
    assert sweeper.sweep(app).decided == 2
    assert [state(one) for one in (group, unfinished, inner, end_of_all)] == ["done", "open", "open", "done"]
    assert len(bodies(group)) == 1


def test_a_sweep_does_not_wait_for_a_decision(stack: Stack) -> None:
    group = opened("succeeded")
    deciding = Transaction(lambda: groups.lock_open(group.pk, "default"))
    assert sweeper.sweep(app).decided == 0
    deciding.end()
    assert sweeper.sweep(app).decided == 1


@pytest.mark.promise("I7")
@pytest.mark.parametrize(
    ("status", "why"), [("failed", "raised it broke"), ("cancelled", "was cancelled"), ("expired", "expired")]
)
def test_a_part_that_does_not_succeed_fails_the_body_when_all_have_ended(stack: Stack, status: str, why: str) -> None:
    group = opened("succeeded", "waiting", status)
    chords.part_ended(app, group.pk, "default")
    assert state(group) == "open"
    end(parts(group)[1])
    (failed,) = bodies(group)
    culprit = parts(group)[2].pk
    assert (state(group), failed.status, failed.reason) == ("failed", "failed", "earlier step")
    assert f"Dependency {culprit} {why}" in failed.error
    assert JobGroup.objects.get(pk=group.pk).error == failed.error


@pytest.mark.promise("I7")
def test_an_inner_group_that_fails_fails_the_outer_one(stack: Stack) -> None:
    outer = opened("succeeded")
    inner = opened("waiting", owes=outer.pk, place="000001")
    chords.part_ended(app, outer.pk, "default")
    assert state(outer) == "open"
    end(parts(inner)[0], Status.FAILED)
    assert (state(inner), state(outer)) == ("failed", "failed")
    assert bodies(outer)[0].status == "failed"


@pytest.mark.promise("I2")
def test_prune_at_age_0_takes_nothing_that_a_group_still_wants(stack: Stack) -> None:
    group = opened("succeeded", "waiting", "failed")
    waiting = parts(group)[1]
    nothing_kept = dict.fromkeys(("succeeded", "failed", "cancelled", "expired"), 0)
    with override_settings(RELIABLE_JOBS={**stack.settings, "RETENTION": {**nothing_kept, "failed": None}}):
        assert pruner.prune() == 0
        end(waiting)
        assert (pruner.prune(), state(group)) == (0, "failed")
        lifecycle.requeue([parts(group)[2].pk], "default", actor="ann")
        assert pruner.prune() == 0
        end(parts(group)[2])
        assert state(group) == "done"
        assert pruner.prune() == 3
        assert not JobGroup.objects.exists()
        assert len(bodies(group)) == 1


@pytest.mark.promise("I6")
def test_a_body_that_cannot_be_written_fails_the_group_once(stack: Stack) -> None:
    group = opened("waiting")
    with mock.patch("reliable_jobs.enqueue.render.MAX_FOLLOWING_BYTES", 1):
        end(parts(group)[0])
    assert state(group) == "failed"
    assert "could not be started" in bodies(group)[0].error
    assert sweeper.sweep(app).decided == 0


def test_the_look_and_the_sweep_read_what_is_open_only(stack: Stack) -> None:
    JobGroup.objects.bulk_create(
        JobGroup(id=uuid.uuid4(), body="{}", state=GroupState.DONE, decided_at=timezone.now()) for _ in range(2000)
    )
    group = opened("succeeded", "succeeded", "running")
    Job.objects.bulk_create(
        job(owes=group.pk, place=f"{n:06x}", status="succeeded", finished_at=timezone.now()) for n in range(2000)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")

    def plan(text: str, *values: Any) -> str:
        with connection.cursor() as cursor:
            cursor.execute("EXPLAIN " + sql.in_words(connection, text), values)
            return "\n".join(row[0] for row in cursor.fetchall())

    assert "Backward using reliable_job_owes_open" in plan(groups.OWED, group.pk)
    undecided = plan(groups.UNDECIDED, 500)
    assert "reliable_job_owes_open" in undecided
    assert "reliable_group_open" in undecided or "reliable_group_owes" in undecided, undecided
