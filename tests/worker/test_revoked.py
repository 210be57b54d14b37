"""Revoke and terminate as Celery documents them, on a real worker: what becomes of rows, groups and bodies, and who is
told."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chord, group
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from reliable_jobs import jobs
from reliable_jobs.models import Job, JobGroup
from reliable_jobs.worker import revocation
from reliable_jobs.worker.parking import aside
from tests.celery_app import app
from tests.support.harness import PATIENCE, Stack, Worker, wait_until
from tests.testapp import tasks

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def _hearing(_queue_of_module: Stack, django_db_blocker: Any) -> Worker:
    with django_db_blocker.unblock(), _queue_of_module.active():
        _queue_of_module.declare()
        return _queue_of_module.worker(concurrency=2, options=["-E"], WORKER_SWEEP_INTERVAL=0.3, GRACE=60)


@pytest.fixture
def hearing(_hearing: Worker, stack: Stack) -> Iterator[Worker]:
    """A worker that sends events, and sweeps three times a second. No message is copied, however slow the machine is: a
    copy that comes after its job was cancelled is told to monitors, too."""
    with override_settings(RELIABLE_JOBS={**stack.settings, "GRACE": 60.0}):
        yield _hearing


@pytest.fixture
def told() -> Iterator[Callable[[Any], list[dict[str, Any]]]]:
    """The events task-revoked of a task, as a monitor sees them."""
    seen: list[dict[str, Any]] = []
    stop, ready = threading.Event(), threading.Event()

    def listen() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"task-revoked": seen.append})
            with receiver.consumer_context() as (live, _, _):
                ready.set()
                while not stop.is_set():
                    try:
                        live.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(PATIENCE)
    yield lambda result: [event for event in seen if event["uuid"] == str(getattr(result, "id", result))]
    stop.set()
    thread.join(10)


def running(gate: Path, log: Path, name: str = "runs") -> Any:
    return tasks.gated.s(name, str(log), str(gate))


def begun(log: Path, count: int = 1) -> None:
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= count, "it runs")


def written(result: Any) -> Any:
    """A body has no row before its group is decided."""
    wait_until(lambda: Job.objects.filter(pk=result.id).exists(), "its row is written")
    return result


HOW: dict[str, Callable[[str], Any]] = {
    "control": lambda task_id: app.control.revoke(task_id, terminate=True),
    "app.AsyncResult": lambda task_id: app.AsyncResult(task_id).revoke(terminate=True),
    "task.AsyncResult": lambda task_id: tasks.gated.AsyncResult(task_id).revoke(terminate=True),
    "stamp": lambda task_id: app.control.revoke_by_stamped_headers({"tour": [task_id]}, terminate=True),
}


@pytest.mark.promise("I7")
@pytest.mark.parametrize("how", HOW)
def test_a_terminated_run_is_cancelled_and_told(
    stack: Stack, hearing: Worker, told: Any, gate: Path, outside: Path, how: str
) -> None:
    task_id = str(uuid.uuid4())
    chain = running(gate, outside).set(task_id=task_id, stamped_headers=["tour"], tour=task_id) | tasks.add.si(1, 2)
    result = chain.apply_async()
    begun(outside)
    HOW[how](task_id)
    job = stack.ends(result.parent, "cancelled")
    assert (job.reason, stack.effects("runs")) == ("revoked", 0)
    stack.ends(result, "cancelled")
    hearing.wait_for_line(f"task_revoked {task_id} terminated=True expired=False")
    wait_until(lambda: told(task_id), "the monitors are told")
    assert [event["terminated"] for event in told(task_id)] == [True]


@pytest.mark.promise("I7")
def test_a_cancel_waits_for_the_lock_of_a_terminated_run(stack: Stack) -> None:
    """A dying child makes its job due. A cancel that came by now and then left the time in between to the sweep."""
    job_id = uuid.UUID(tasks.effect.apply_async(("gives itself back",), countdown=600).id)
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"

    def waiting() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(waits)
            return bool(cursor.fetchone()[0])

    with transaction.atomic():
        Job.objects.filter(pk=job_id).lock().get()
        thread = aside(lambda: revocation.cancel_revoked(job_id, "default", terminated=True), "the cancel")
        wait_until(waiting, "the cancel waits for the row")
        Job.objects.filter(pk=job_id).update(sends=0, check_at=None, due_at=timezone.now())
    assert thread is not None
    thread.join(PATIENCE)
    assert Job.objects.get(pk=job_id).status == "cancelled"


@pytest.mark.promise("I7")
@pytest.mark.parametrize("how", ["control", "app.AsyncResult", "task.AsyncResult"])
def test_a_job_that_waits_for_its_time_is_cancelled(stack: Stack, hearing: Worker, how: str) -> None:
    result = tasks.gated.apply_async(("never", "", ""), countdown=600)
    HOW[how](result.id)
    assert stack.ends(result, "cancelled").reason == "revoked"


@pytest.mark.promise("I7")
def test_a_group_is_revoked_as_a_whole(stack: Stack, hearing: Worker, told: Any, gate: Path, outside: Path) -> None:
    """Two of its tasks run, one waits for a worker, one for its time."""
    parts = [running(gate, outside, f"g{number}") for number in range(3)]
    result = group(*parts, tasks.effect.s("late").set(countdown=600)).apply_async()
    begun(outside, 2)
    result.revoke(terminate=True)
    for one in result.results:
        assert stack.ends(one, "cancelled").reason == "revoked"
    assert len(outside.read_text().splitlines()) == 2
    for one in result.results[:3]:
        wait_until(lambda one=one: told(one), "the monitors are told")
    assert stack.effects("late") == 0


@pytest.mark.promise("I7")
@pytest.mark.parametrize("which", ["running", "delayed"])
def test_a_revoked_part_fails_its_body(stack: Stack, hearing: Worker, gate: Path, outside: Path, which: str) -> None:
    parts = {"running": running(gate, outside), "delayed": tasks.effect.s("late").set(countdown=600)}
    body = tasks.add.s([1]).on_error(tasks.effect.si("errback"))
    result = chord([parts[which], tasks.effect.s("other")], body).apply_async()
    part = result.parent.results[0]
    if which == "running":
        begun(outside)
    app.control.revoke(part.id, terminate=True)
    stack.ends(part, "cancelled")
    assert "was cancelled" in stack.ends(written(result), "failed").error
    assert JobGroup.objects.get().state == "failed"
    wait_until(lambda: stack.effects("errback") == 1, "its errback is called")


@pytest.mark.promise("I7")
def test_a_revoked_body_cancels_its_group(stack: Stack, hearing: Worker, gate: Path, outside: Path) -> None:
    result = chord([running(gate, outside), tasks.effect.s("other")], tasks.add.s([1])).apply_async()
    begun(outside)
    app.control.revoke(result.id)
    stack.ends(written(result), "cancelled")
    gate.touch()
    stack.ends(result.parent.results[0])
    assert (JobGroup.objects.get().state, Job.objects.count()) == ("cancelled", 3)


@pytest.mark.promise("I7")
def test_a_stamp_reaches_what_waits_and_a_later_requeue_outweighs_it(stack: Stack, hearing: Worker, told: Any) -> None:
    stamp = uuid.uuid4().hex
    result = tasks.effect.apply_async(("stamped",), countdown=600, stamped_headers=["tour"], tour=stamp)
    node = f"{hearing.name}@test"
    assert app.control.revoke_by_stamped_headers({"tour": [stamp]}, destination=[node], reply=True, timeout=PATIENCE), (
        "it has heard"
    )
    Job.objects.update(due_at=timezone.now())
    assert stack.ends(result, "cancelled").reason == "revoked"
    hearing.wait_for_line(f"task_revoked {result.id} terminated=False expired=False")
    jobs.requeue([result.id], actor="ann")
    stack.ends(result)
    assert stack.effects("stamped") == 1
