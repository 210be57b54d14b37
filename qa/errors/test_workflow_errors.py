"""An exception is raised at every call of the package's own code while the jobs of a workflow are delivered, from the
first to the last. Every workflow completes or visibly fails, and no effect happens twice."""

from __future__ import annotations

import random

import pytest

from qa.crashes.workflows import WORKFLOWS, Workflow
from reliable_jobs.models import Job, JobEvent, JobGroup
from tests.celery_app import app
from tests.support import errors, inprocess
from tests.support.errors import Calls, Worker, history
from tests.support.inprocess import InProcess
from tests.testapp.models import Effect

pytestmark = [pytest.mark.promise("I2"), pytest.mark.promise("I3"), pytest.mark.promise("I7")]
jobs = inprocess.jobs
worker = errors.worker

#: Points of each workflow that the gate tries.
SOME = 6


def run(worker: Worker, workflow: Workflow, watched: int = -1, raise_at: int = 0) -> list[list[str]]:
    """Call the workflow and work it off, an exception raised in one delivery. Returns the calls of each delivery, none
    for those of plain tasks.

    Args:
        watched: number of that delivery.
        raise_at: number of its call.
    """
    workflow.call("w", worker.jobs.queue)
    seen: list[list[str]] = []
    held, left = [], worker.jobs.take()
    while left:
        message = left.pop(0)
        calls = Calls(raise_at if len(seen) == watched else 0)
        ours = getattr(app.tasks[message.headers["task"]], "writes_outbox", False)
        if ours and watched in (-1, len(seen)):
            with calls.watching():
                answer = worker.deliver(message)
        else:
            answer = worker.deliver(message)
        seen.append(calls.names)
        if answer not in ("acked", "rejected"):
            held.append(message)
        left += worker.jobs.take()
    worker.recover(held)
    return seen


def check(workflow: Workflow) -> None:
    """Every job has ended, each effect happened as often as its job succeeded, and what is missing has failed visibly,
    with the reason."""
    assert not JobGroup.objects.filter(state="open").exists()
    rows = list(Job.objects.all())
    assert {row.status for row in rows} <= {"succeeded", "failed", "sent"}
    done = list(Effect.objects.values_list("name", flat=True))
    for end in workflow.once:
        assert done.count(f"w-{end}") <= 1, f"{end} happened {done.count(f'w-{end}')} times"
    missing = [end for end in (*workflow.once, *workflow.at_least_once) if f"w-{end}" not in done]
    if missing:
        said = "\n".join(f"{row.task} {row.status}: {row.error}\n{history(row.pk)}" for row in rows)
        assert "Injected" in said, f"{missing} did not happen, and nothing says why:\n{said}"
        assert any(row.status == "failed" for row in rows), f"{missing} did not happen, and nothing has failed:\n{said}"


def clean() -> None:
    for model in (Job, JobEvent, JobGroup, Effect):
        model.objects.all().delete()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of generators that are left at once
@pytest.mark.parametrize("kind", WORKFLOWS)
@pytest.mark.parametrize("most", [pytest.param(SOME, id="some"), pytest.param(0, id="every", marks=pytest.mark.soak)])
def test_after_an_error_at_any_call_a_workflow_completes_or_fails(
    jobs: InProcess, worker: Worker, kind: str, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    workflow = WORKFLOWS[kind]
    run(worker, workflow)  # fills caches, which makes some calls
    clean()
    seen = run(worker, workflow)
    check(workflow)
    assert Effect.objects.filter(name__startswith="w-").count() == len(workflow.once) + len(workflow.at_least_once)
    clean()
    points = [(number, call) for number, names in enumerate(seen) for call in range(1, len(names) + 1)]
    chosen = random.sample(points, most) if most else points
    print(f"{kind}: {len(points)} injection points in {len(seen)} deliveries, raised at {len(chosen)} of them")
    wrong = []
    for number, call in chosen:
        try:
            run(worker, workflow, number, call)
            check(workflow)
        except Exception as error:
            wrong.append(f"delivery {number}, call {call} ({seen[number][call - 1]}): {type(error).__name__}: {error}")
        clean()
    assert not wrong, f"{len(wrong)} of {len(chosen)}\n" + "\n".join(wrong)
