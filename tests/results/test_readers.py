"""All who read what became of a task, compared at each moment of a job's life: ``AsyncResult`` of the task, of the app
and of an app that knows no reliable task, django-celery-results' rows, Flower's REST, ``inspect``.

docs/how-to.md has the table of what each says; a test holds it against MOMENTS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord
from django.test import override_settings
from django_celery_results.models import TaskResult

from reliable_jobs import jobs as public
from reliable_jobs.models import Job
from tests.celery_app import app
from tests.results.asked_tasks import reliable
from tests.results.read_tasks import gated, misfit, outside, shows_outside, tracked
from tests.support.harness import PATIENCE, ROOT, Process, Stack, Worker, wait_until
from tests.testapp import tasks
from tests.testapp.tasks import OutOfStock

pytestmark = pytest.mark.servers

#: What a reader says of a task that it knows nothing of.
NOTHING = "-"


@dataclasses.dataclass
class Site:
    """A worker with one child, Flower, and an app that has none of the tasks."""

    stack: Stack
    worker: Worker
    flower: str
    other: Celery


@pytest.fixture(scope="module")
def _site(_queue_of_module: Stack, django_db_blocker: Any) -> Iterator[Site]:
    pytest.importorskip("flower")
    stack = _queue_of_module
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with django_db_blocker.unblock(), stack.active():
        stack.declare()
        argv = [sys.executable, "-m", "celery", "-A", "tests.celery_app", "flower", "--address=127.0.0.1"]
        env = stack.environment(FLOWER_UNAUTHENTICATED_API="true")
        env["FLOWER_UNAUTHENTICATED_API"] = "true"
        flower = Process("flower", [*argv, f"--port={port}", "--inspect-timeout=500"], env, stack.directory)
        stack.processes.append(flower)
        worker = stack.worker(
            options=["-E", "-I", "tests.results.asked_tasks,tests.results.read_tasks"],
            DEPLOY_GRACE=0.05,
            WORKER_SWEEP_INTERVAL=0.2,
            GRACE=60,
        )
        flower.wait_for_line("Connected to")
    other = Celery(
        "other", broker=stack.broker_url, backend="reliable_jobs.results:LedgerBackend", set_as_current=False
    )
    site = Site(stack, worker, f"http://127.0.0.1:{port}", other)
    # Flower has its queue of events a moment after it is connected.
    with django_db_blocker.unblock(), stack.active():
        wait_until(lambda: flower_hears(site), "Flower hears of a task")
    yield site
    stack.end_processes([worker, flower])


def flower_hears(site: Site) -> bool:
    done = reliable["adds"].delay(1, 2)
    done.get(timeout=PATIENCE)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: by_flower(site, done.id) == "SUCCESS", "Flower knows it", 1.0)
        return True
    return False


@pytest.fixture
def site(_site: Site, stack: Stack) -> Iterator[Site]:
    with override_settings(RELIABLE_JOBS={**stack.settings, "GRACE": 60.0}):  # no copies
        yield _site


# --- the readers ------------------------------------------------------------------------------------------------------


def by_flower(site: Site, task_id: str) -> str:
    try:
        with urllib.request.urlopen(f"{site.flower}/api/task/info/{task_id}", timeout=60) as answer:
            return str(json.load(answer)["state"])
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return NOTHING


def by_flowers_result(site: Site, task_id: str) -> str:
    """Another of its addresses, which asks the result backend."""
    with urllib.request.urlopen(f"{site.flower}/api/task/result/{task_id}", timeout=60) as answer:
        return str(json.load(answer)["state"])


def by_model(site: Site, task_id: str) -> str:
    row = TaskResult.objects.filter(task_id=task_id).first()
    return NOTHING if row is None else row.status


def by_inspect(site: Site, task_id: str) -> str:
    node = f"{site.worker.name}@test"
    inspect = app.control.inspect(destination=[node], timeout=10)
    known = (inspect.query_task(task_id) or {}).get(node) or {}
    return str(known[task_id][0]) if task_id in known else NOTHING


def by_result(site: Site, task_id: str) -> str:
    """All that ask the ledger, which have one answer."""
    answers = {
        "task": tasks.effect.AsyncResult(task_id),
        "app": app.AsyncResult(task_id),
        "another app": site.other.AsyncResult(task_id),
    }
    states = {name: one.state for name, one in answers.items()}
    states["Flower's result"] = by_flowers_result(site, task_id)
    assert len(set(states.values())) == 1, states
    texts = {f"{type(one.result).__name__}: {one.result}" for one in answers.values()}
    assert len(texts) == 1, texts
    return states["app"]


READERS = {
    "AsyncResult": by_result,
    "django-celery-results": by_model,
    "Flower": by_flower,
    "inspect": by_inspect,
}


# --- the moments ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Moment:
    """
    Attributes:
        says: what AsyncResult, django-celery-results, Flower's task info and inspect say.
        bring: brings a job there, and returns its id.
        error: the class that get() raises, by its name.
    """

    says: tuple[str, str, str, str]
    bring: Callable[[Site, Path], str]
    error: str = ""


def waiting(site: Site, gate: Path) -> str:
    """In the queue, behind as many as the worker takes ahead."""
    first = gated.delay(str(gate))
    for _ in range(4):
        reliable["adds"].delay(1, 2)
    wait_until(lambda: by_inspect(site, first.id) == "active", "the first one runs")
    return reliable["adds"].delay(1, 2).id


def reserved(site: Site, gate: Path) -> str:
    first = gated.delay(str(gate))
    result = reliable["adds"].delay(1, 2)
    wait_until(lambda: by_inspect(site, first.id) == "active", "the first one runs")
    return result.id


def delayed(site: Site, gate: Path) -> str:
    return reliable["adds"].apply_async((1, 2), countdown=600).id


def running(task: Any, state: str = "PENDING") -> Callable[[Site, Path], str]:
    """
    Args:
        state: which the run has written, once it has come so far.
    """

    def bring(site: Site, gate: Path) -> str:
        result = task.delay(str(gate))
        wait_until(lambda: by_inspect(site, result.id) == "active", "it runs")
        wait_until(lambda: app.AsyncResult(result.id).state == state, "it says so")
        return result.id

    return bring


def retrying(site: Site, gate: Path) -> str:
    result = tasks.fails_first.delay("x", 1, countdown=600)
    wait_until(lambda: Job.objects.get(pk=result.id).failures == 1, "it is to be run again")
    return result.id


def ended(*calls: Callable[[], Any]) -> Callable[[Site, Path], str]:
    def bring(site: Site, gate: Path) -> str:
        (result,) = [call() for call in calls]
        wait_until(lambda: app.AsyncResult(result.id).ready(), "it has ended")
        return result.id

    return bring


def cancelled_before(site: Site, gate: Path) -> str:
    result = reliable["adds"].apply_async((1, 2), countdown=600)
    public.cancel(Job.objects.filter(pk=result.id), actor="ann")
    return result.id


def cancelled_in_queue(site: Site, gate: Path) -> str:
    task_id = reserved(site, gate)
    public.cancel(Job.objects.filter(pk=task_id), actor="ann")
    gate.touch()
    return task_id


def terminated(site: Site, gate: Path) -> str:
    task_id = running(gated)(site, gate)
    app.control.revoke(task_id, terminate=True)
    wait_until(lambda: app.AsyncResult(task_id).ready(), "it is cancelled")
    return task_id


def expired(site: Site, gate: Path) -> str:
    first = gated.delay(str(gate))
    result = reliable["adds"].apply_async((1, 2), expires=0.2)
    wait_until(lambda: by_inspect(site, first.id) == "active", "the first one runs")
    wait_until(lambda: Job.objects.get(pk=result.id).expires_at < site.stack.database_now(), "its time is over")
    gate.touch()
    wait_until(lambda: app.AsyncResult(result.id).ready(), "it has expired")
    return result.id


def requeued(site: Site, gate: Path) -> str:
    result = reliable["runs_out"].delay("tea")
    wait_until(lambda: app.AsyncResult(result.id).ready(), "it has failed")
    wait_until(lambda: by_model(site, result.id) == "FAILURE", "the copy is written")
    running(gated)(site, gate)  # so that it waits
    public.requeue(Job.objects.filter(pk=result.id), actor="ann")
    return result.id


def step(number: int, steps: Callable[[Path], Any], until: Callable[[Any], Any]) -> Callable[[Site, Path], str]:
    """One of a chain's steps, counted from the last."""

    def bring(site: Site, gate: Path) -> str:
        result = last = chain(*steps(gate)).apply_async()
        for _ in range(number):
            result = result.parent
        nodes = [last, last.parent]
        wait_until(lambda: until([app.AsyncResult(node.id).state for node in nodes]), "the chain has come so far")
        return result.id

    return bring


def part(site: Site, gate: Path) -> str:
    result = chord([reliable["adds"].s(1, 2), gated.si(str(gate))], reliable["sums"].s()).apply_async()
    first = result.parent[0]
    wait_until(lambda: app.AsyncResult(first.id).ready(), "the first part has ended")
    return first.id


def body(site: Site, gate: Path) -> str:
    result = chord([reliable["adds"].s(1, 2), gated.si(str(gate))], reliable["sums"].s()).apply_async()
    wait_until(lambda: app.AsyncResult(result.parent[0].id).ready(), "the first part has ended")
    return result.id


def failed_body(site: Site, gate: Path) -> str:
    result = chord([reliable["adds"].s(1, 2), reliable["runs_out"].si("tea")], reliable["sums"].s()).apply_async()
    wait_until(lambda: app.AsyncResult(result.id).ready(), "the body has failed")
    return result.id


TWO = [
    lambda gate: (gated.si(str(gate)), reliable["adds"].si(1, 2)),
    lambda gate: (reliable["runs_out"].si("tea"), reliable["adds"].si(1, 2)),
]

MOMENTS: dict[str, Moment] = {
    "waits in the queue": Moment(("PENDING", NOTHING, NOTHING, NOTHING), waiting),
    "waits in a worker": Moment(("PENDING", NOTHING, "RECEIVED", "reserved"), reserved),
    "has a countdown or eta": Moment(("PENDING", NOTHING, NOTHING, NOTHING), delayed),
    "runs, atomic": Moment(("PENDING", NOTHING, "STARTED", "active"), running(gated)),
    "runs, with `track_started`": Moment(("STARTED", "STARTED", "STARTED", "active"), running(tracked, "STARTED")),
    "runs, not atomic": Moment(("STARTED", NOTHING, "STARTED", "active"), running(outside, "STARTED")),
    "has called `update_state()`, atomic": Moment(
        ("PROGRESS", NOTHING, "STARTED", "active"), running(tasks.shows_progress, "PROGRESS")
    ),
    "has called `update_state()`, not atomic": Moment(
        ("PROGRESS", "PROGRESS", "STARTED", "active"), running(shows_outside, "PROGRESS")
    ),
    "waits for a retry": Moment(("RETRY", "RETRY", "RETRY", NOTHING), retrying),
    "succeeded": Moment(("SUCCESS", "SUCCESS", "SUCCESS", NOTHING), ended(lambda: reliable["adds"].delay(1, 2))),
    "failed": Moment(
        ("FAILURE", "FAILURE", "FAILURE", NOTHING), ended(lambda: reliable["runs_out"].delay("tea")), "OutOfStock"
    ),
    "failed, requeued, waits in a worker": Moment(("PENDING", "PENDING", "FAILURE", "reserved"), requeued),
    "cancelled while it waited": Moment(("REVOKED", "REVOKED", NOTHING, NOTHING), cancelled_before, "TaskRevokedError"),
    "cancelled, its message in a worker": Moment(
        ("REVOKED", "REVOKED", "REVOKED", NOTHING), cancelled_in_queue, "TaskRevokedError"
    ),
    "terminated": Moment(("REVOKED", "REVOKED", "REVOKED", NOTHING), terminated, "TaskRevokedError"),
    "expired": Moment(("REVOKED", "REVOKED", "REVOKED", NOTHING), expired, "JobExpired"),
    "parked": Moment(
        ("FAILURE", "FAILURE", "FAILURE", NOTHING), ended(lambda: app.send_task(misfit.name, (1,))), "JobParked"
    ),
    "a chain's later step": Moment(("PENDING", NOTHING, NOTHING, NOTHING), step(0, TWO[0], lambda states: True)),
    "a step behind one that failed": Moment(
        ("FAILURE", "FAILURE", NOTHING, NOTHING),
        step(0, TWO[1], lambda states: states == ["FAILURE", "FAILURE"]),
        "OutOfStock",
    ),
    "a chord's part that has ended": Moment(("SUCCESS", "SUCCESS", "SUCCESS", NOTHING), part),
    "a chord's body that waits for the parts": Moment(("PENDING", NOTHING, NOTHING, NOTHING), body),
    "the body of a failed chord": Moment(("FAILURE", "FAILURE", NOTHING, NOTHING), failed_body, "ChordError"),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_all_readers_say_what_the_docs_say(site: Site, gate: Path, name: str) -> None:
    moment = MOMENTS[name]
    task_id = moment.bring(site, gate)
    said: list[tuple[str, ...]] = []

    def agreed() -> bool:
        said.append(tuple(reader(site, task_id) for reader in READERS.values()))
        return said[-1] == moment.says

    try:
        wait_until(agreed, "all readers have heard of it")
    except AssertionError:
        assert dict(zip(READERS, said[-1], strict=True)) == dict(zip(READERS, moment.says, strict=True))
    assert {one[0] for one in said} == {moment.says[0]}, "AsyncResult knows at once"
    if moment.error:
        for asked in (tasks.effect.AsyncResult(task_id), app.AsyncResult(task_id), site.other.AsyncResult(task_id)):
            error = asked.get(timeout=1, propagate=False)
            assert type(error).__name__ == moment.error
            with pytest.raises(type(error)):
                asked.get(timeout=1)
        if moment.error == "OutOfStock":
            assert isinstance(error, OutOfStock)


def test_the_docs_have_this_table() -> None:
    page = (ROOT / "docs" / "how-to.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([A-Z]+) \| ([-A-Z]+) \| ([-A-Z]+) \| ([-a-z]+) \|$", page, re.MULTILINE)
    assert {name: tuple(says) for name, *says in rows} == {name: moment.says for name, moment in MOMENTS.items()}
