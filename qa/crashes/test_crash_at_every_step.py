"""I1 to I3, exhaustively: producer, worker and sweeper are killed before and after each of their statements, of their
commits and of their calls to the broker, and what is left recovers to effects that happened exactly once."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from django_celery_results.models import TaskResult

from qa.crashes.crashes import Cut, Scenario, WarmProcesses, all_of, prefork_children
from qa.crashes.producers import JOBS
from reliable_jobs import lifecycle
from reliable_jobs.clock import Now
from reliable_jobs.dispatch.publisher import publisher
from reliable_jobs.lifecycle import Claim
from reliable_jobs.message.row_to_message import outgoing
from reliable_jobs.models import Job, JobGroup
from tests.celery_app import app
from tests.support.harness import Stack
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.promise("I2")]


@pytest.fixture(scope="module")
def warm(_queue_of_module: Stack) -> WarmProcesses:
    return WarmProcesses(_queue_of_module)


def some_and_every(share: int) -> pytest.MarkDecorator:
    """One in so many steps in the gate, and every step in the soak."""
    each = [pytest.param(share, id="some"), pytest.param(1, id="every", marks=pytest.mark.soak)]
    return pytest.mark.parametrize("share", each)


# --- producer ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("I1")
@pytest.mark.parametrize("kind", JOBS)
def test_a_producer_killed_anywhere_leaves_all_its_jobs_or_none(stack: Stack, warm: WarmProcesses, kind: str) -> None:
    scenario = Scenario(stack, warm, "producer", kind=kind)
    cuts = scenario.run()
    assert scenario.undisturbed.passed("broker: wait for confirms") == 1
    assert scenario.undisturbed.passed("broker: publish") == 1, "all that commits in one write"
    written = "INSERT" if kind == "autocommit" else "COMMIT"
    first_publish = scenario.undisturbed.reached.index("before broker: publish")
    assert written not in "".join(scenario.undisturbed.reached[first_publish:]), "published before all was committed"

    def committed(cut: Cut) -> tuple[int, int]:
        if kind == "autocommit":
            return cut.passed('INSERT INTO "testapp_effect"'), cut.passed('INSERT INTO "reliable_jobs_job"')
        done = cut.passed("default: COMMIT")
        return done, done * JOBS[kind]

    all_of(cuts, lambda cut: committed(cut)[1], lambda cut: Job.objects.filter(queue=cut.name).count())
    scenario.recover()
    all_of(cuts, committed, lambda cut: (stack.effects(f"order {cut.name}"), stack.effects(cut.name)))
    assert stack.effects("undone") == 0


# --- worker -----------------------------------------------------------------------------------------------------------


def enqueue(task: Any, **options: Any) -> Callable[[str], Any]:
    """The usual: the job and its message are out."""
    return lambda name: task.apply_async((name,), queue=name, **options)


def send_again(task: Any) -> Callable[[str], None]:
    """The message of a second send, as a sweeper would send it: a committed claim."""

    def prepare(name: str) -> None:
        job = task.apply_async((name,), queue=name, countdown=0.001)
        Job.objects.filter(pk=job.id).update(sends=2, check_at=Now())
        assert publisher(app).publish([outgoing(Job.objects.get(pk=job.id), "default")]).confirmed

    return prepare


def ends(cut: Cut) -> list[tuple[str, str]]:
    """How the jobs of a cut's queue have ended: in their rows, and in the result backend."""
    told = dict(TaskResult.objects.values_list("task_id", "status"))
    return [(job.status, told.get(str(job.pk), "nothing")) for job in Job.objects.filter(queue=cut.name)]


@pytest.mark.promise("I3")
@pytest.mark.parametrize(("prepare", "commits_before"), [(enqueue, 0), (send_again, 1)], ids=["first", "careful"])
def test_a_worker_killed_anywhere_leaves_an_effect_that_happens_once(
    stack: Stack, warm: WarmProcesses, prepare: Any, commits_before: int
) -> None:
    scenario = Scenario(stack, warm, "worker", prepare(tasks.effect))
    cuts = scenario.run()
    assert scenario.undisturbed.passed("broker: basic_ack") == 1
    all_of(cuts, lambda cut: int(cut.passed("COMMIT") > commits_before), lambda cut: stack.effects(cut.name))
    scenario.recover()
    all_of(cuts, lambda cut: (1, [("succeeded", "SUCCESS")]), lambda cut: (stack.effects(cut.name), ends(cut)))
    assert not Job.objects.exclude(failures=0, crashes__lte=commits_before).exists()


#: The claim, the body's first statement, both commits. Children that die by the dozen keep billiard busy for a while,
#: so that the other steps are left to the soak.
CHOSEN = ("SKIP LOCKED", '"testapp_effect"', "COMMIT")


@pytest.mark.promise("I3")
@pytest.mark.parametrize(
    "which",
    [
        pytest.param(lambda step: any(part in step for part in CHOSEN), id="chosen"),
        pytest.param(lambda step: True, id="every", marks=pytest.mark.soak),
    ],
)
def test_a_prefork_child_killed_anywhere_is_made_good_by_its_worker(
    stack: Stack, warm: WarmProcesses, idle_queue: str, which: Any
) -> None:
    cuts = prefork_children(stack, warm, tasks.effect.delay, which)
    all_of(cuts, lambda cut: 1, lambda cut: stack.effects(cut.name))
    told = dict(TaskResult.objects.values_list("task_id", "status"))
    assert {(job.status, told.get(str(job.pk))) for job in Job.objects.all()} == {("succeeded", "SUCCESS")}
    assert not Job.objects.exclude(failures=0, crashes=0).exists()


@pytest.mark.promise("I3")
def test_a_failing_run_killed_anywhere_leaves_its_failure_once(stack: Stack, warm: WarmProcesses) -> None:
    scenario = Scenario(stack, warm, "worker", enqueue(tasks.fails))
    cuts = scenario.run()
    assert scenario.undisturbed.passed("ROLLBACK TO SAVEPOINT") == 1
    scenario.recover()
    all_of(cuts, lambda cut: (0, [("failed", "FAILURE")]), lambda cut: (stack.effects(cut.name), ends(cut)))
    all_of(cuts, lambda cut: (1, ["failure"]), attempts_and_events)


def attempts_and_events(cut: Cut) -> tuple[int, list[str]]:
    job = Job.objects.get(queue=cut.name)
    return job.failures, Stack.kinds(job)


@pytest.mark.promise("I3")
def test_a_run_that_retries_killed_anywhere_counts_one_attempt(stack: Stack, warm: WarmProcesses) -> None:
    scenario = Scenario(stack, warm, "worker", lambda name: tasks.fails_first.apply_async((name, 1), queue=name))
    cuts = scenario.run()
    scenario.recover()
    all_of(cuts, lambda cut: (1, [("succeeded", "SUCCESS")]), lambda cut: (stack.effects(cut.name), ends(cut)))
    all_of(cuts, lambda cut: 1, lambda cut: stack.effects(f"{cut.name}-undone"))
    all_of(cuts, lambda cut: (1, ["failure"]), attempts_and_events)


@pytest.mark.promise("I3")
@some_and_every(4)
def test_jobs_of_a_parent_killed_anywhere_run_once(stack: Stack, warm: WarmProcesses, share: int) -> None:
    def prepare(name: str) -> None:
        tasks.enqueues.apply_async((name,), queue=name, link=tasks.effect.si(f"{name}-link"))

    scenario = Scenario(stack, warm, "worker", prepare)
    cuts = scenario.run(share=share)
    assert scenario.undisturbed.passed("broker: publish") == 1
    scenario.recover()
    all_of(cuts, lambda cut: (1, 1), lambda cut: (stack.effects(cut.name), stack.effects(f"{cut.name}-link")))
    all_of(cuts, lambda cut: [("succeeded", "SUCCESS")], ends)
    assert Job.objects.filter(task=tasks.effect.name).count() == 2 * len(cuts)


#: Kind D of FOUND.md: what follows, by the ends of the names of its effects; a plain task's come at least once.
FOLLOWS: dict[str, tuple[list[str], list[str]]] = {
    "success": (["link", "group", "step"], ["plain-link", "plain-group", "plain-step"]),
    "failure": (["id", "all"], []),
    "failure, plain": ([], ["plain-id", "plain-all"]),
}
ERRBACKS = {
    "id": tasks.errback_by_id,
    "all": tasks.errback_with_all,
    "plain-id": tasks.plain_errback_by_id,
    "plain-all": tasks.plain_errback_with_all,
}


def with_links(name: str) -> None:
    def one(task: Any, end: str) -> Any:
        return task.si(name=f"{name}-{end}").set(queue=name)

    parent = tasks.effect.si(name).set(queue=name)
    for callback in (
        one(tasks.effect, "link"),
        one(tasks.plain_effect, "plain-link"),
        group(one(tasks.effect, "group"), one(tasks.plain_effect, "plain-group")),
    ):
        parent.link(callback)
    chain(parent, group(one(tasks.effect, "step"), one(tasks.plain_effect, "plain-step"))).apply_async()


def with_errbacks(ends: list[str], name: str) -> None:
    parent = tasks.fails.si(name).set(queue=name)
    for end in ends:
        parent.link_error(ERRBACKS[end].s(name=f"{name}-{end}").set(queue=name))
    chain(parent, tasks.effect.si(f"{name}-later").set(queue=name)).apply_async()


@pytest.mark.promise("I3")
@some_and_every(10)
@pytest.mark.parametrize("after", FOLLOWS)
def test_d_what_follows_a_parent_killed_anywhere_comes(
    stack: Stack, warm: WarmProcesses, after: str, share: int
) -> None:
    once, at_least_once = FOLLOWS[after]
    errbacks = functools.partial(with_errbacks, [*once, *at_least_once])
    scenario = Scenario(stack, warm, "worker", with_links if after == "success" else errbacks)
    cuts = scenario.run(share=share)
    assert scenario.undisturbed.passed("broker: publish") == 1
    scenario.recover()
    all_of(cuts, lambda cut: [1] * len(once), lambda cut: [stack.effects(f"{cut.name}-{end}") for end in once])
    all_of(
        cuts,
        lambda cut: [1] * len(at_least_once),
        lambda cut: [min(1, stack.effects(f"{cut.name}-{end}")) for end in at_least_once],
    )
    all_of(cuts, lambda cut: 0, lambda cut: stack.effects(f"{cut.name}-later"))
    kept = {"success": {"succeeded", "sent"}, "failure": {"failed", "succeeded"}}
    final = kept.get(after, {"failed", "succeeded", "sent"})
    all_of(cuts, lambda cut: final, lambda cut: set(statuses(cut)))


def with_body(name: str) -> None:
    """A chord whose only part is the job that is killed, in the header of another one."""

    def one(end: str) -> Any:
        return tasks.effect.si(f"{name}{end}").set(queue=name)

    chord([chord([one("")], one("-inner"))], one("-body")).apply_async()


@pytest.mark.promise("I3")
@pytest.mark.soak  # the gate kills at some steps of larger workflows: test_workflow_crashes.py
def test_a_chords_body_comes_after_its_last_part_was_killed_anywhere(stack: Stack, warm: WarmProcesses) -> None:
    """Also between the part's commit and the look at what is left, and within the decision."""
    scenario = Scenario(stack, warm, "worker", with_body)
    cuts = scenario.run()
    # Twice where the worker has also taken the inner body, before it was told to end.
    assert scenario.undisturbed.passed('UPDATE "reliable_jobs_jobgroup"') in (1, 2)
    scenario.recover()
    ends = ("", "-inner", "-body")
    all_of(cuts, lambda cut: [1, 1, 1], lambda cut: [stack.effects(f"{cut.name}{end}") for end in ends])
    all_of(cuts, lambda cut: ["succeeded"] * 3, statuses)
    assert set(JobGroup.objects.values_list("state", flat=True)) == {"done"}


def test_a_non_atomic_run_killed_anywhere_repeats_what_was_not_settled(
    stack: Stack, warm: WarmProcesses, gate: Path, outside: Path
) -> None:
    def prepare(name: str) -> None:
        tasks.slow_outside.apply_async((name, str(outside), str(gate)), queue=name)

    gate.touch()
    scenario = Scenario(stack, warm, "worker", prepare)
    cuts = scenario.run()
    scenario.recover()
    claimed, fenced = 1, 2  # the commits before the settlement's
    assert scenario.undisturbed.passed("COMMIT") > fenced + claimed
    all_of(cuts, lambda cut: 2 if cut.passed("COMMIT") == fenced else 1, lambda cut: stack.effects(cut.name))
    all_of(cuts, lambda cut: [("succeeded", "SUCCESS")], ends)


# --- sweeper ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["due", "overdue"])
def test_a_sweeper_killed_anywhere_leaves_its_jobs_to_the_next(stack: Stack, warm: WarmProcesses, kind: str) -> None:
    """Not both in one queue: while messages wait there and nobody consumes, nothing is sent again."""

    def prepare(name: str) -> None:
        task = tasks.effect.s().set(queue=name)
        job = stack.row_only(task, name)
        if kind == "overdue":
            Job.objects.filter(pk=job.pk).update(sends=1, check_at=Now() - datetime.timedelta(seconds=1))
        abandoned = stack.row_only(task, name)
        assert isinstance(lifecycle.claim_committed(abandoned.pk, 0, "default", worker="dead", lease=-1.0), Claim)

    scenario = Scenario(stack, warm, "sweeper", prepare, apart=True)
    cuts = scenario.run()
    published = scenario.undisturbed.passed("broker: publish")
    assert published == 1 + 1, "the batch, and the probe before it"
    scenario.recover()
    all_of(cuts, lambda cut: (2, ["succeeded"] * 2), lambda cut: (stack.effects(cut.name), statuses(cut)))


def statuses(cut: Cut) -> list[str]:
    return list(Job.objects.filter(queue=cut.name).values_list("status", flat=True))
