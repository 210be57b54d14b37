"""I2 and I3 of workflows: their worker is killed before and after each statement, commit and call to the broker, from
the first job to the last. Every workflow completes, and each part's and body's effects happen once."""

from __future__ import annotations

import pytest

from qa.crashes.crashes import Cut, Scenario, WarmProcesses, all_of
from qa.crashes.workflows import WORKFLOWS
from reliable_jobs.models import Job, JobGroup
from tests.support.harness import Stack

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.promise("I2"), pytest.mark.promise("I3")]

#: Of their steps the gate tries one in so many; those of the others are all tried by the soak.
SOME = {"chords, three deep": 20, "replace by a chord, in a part": 20}


@pytest.fixture(scope="module")
def warm(_queue_of_module: Stack) -> WarmProcesses:
    return WarmProcesses(_queue_of_module)


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        *(pytest.param(kind, share, id=f"{kind}, some") for kind, share in SOME.items()),
        *(pytest.param(kind, 1, id=f"{kind}, every", marks=pytest.mark.soak) for kind in WORKFLOWS),
    ],
)
def test_a_workflow_whose_worker_is_killed_anywhere_completes(
    stack: Stack, warm: WarmProcesses, kind: str, share: int
) -> None:
    workflow = WORKFLOWS[kind]
    scenario = Scenario(stack, warm, "worker", workflow.call, answers=workflow.messages)
    cuts = scenario.run(share=share)
    print(f"{kind}: {len(scenario.undisturbed.reached)} steps, killed at {len(cuts) - 1} of them")
    scenario.recover()
    all_of(cuts, lambda cut: [1] * len(workflow.once), lambda cut: [effects(stack, cut, end) for end in workflow.once])
    all_of(
        cuts,
        lambda cut: [True] * len(workflow.at_least_once),
        lambda cut: [effects(stack, cut, end) > 0 for end in workflow.at_least_once],
    )
    all_of(
        cuts,
        lambda cut: workflow.ends,
        lambda cut: frozenset(Job.objects.filter(queue=cut.name).values_list("status", flat=True)),
    )
    assert "open" not in JobGroup.objects.values_list("state", flat=True)


def effects(stack: Stack, cut: Cut, end: str) -> int:
    return stack.effects(f"{cut.name}-{end}")
