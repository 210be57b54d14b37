"""Sentry hears of endings that no function reported: once, and not where its own Celery integration does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.signals import task_failure

from reliable_jobs import lifecycle
from reliable_jobs.models import Job, JobEvent
from tests.support import inprocess
from tests.support.harness import Stack, Worker, wait_until
from tests.support.inprocess import InProcess
from tests.support.rows import past
from tests.testapp import tasks

with pytest.MonkeyPatch.context() as patch:
    # It would import eventlet to ask whether that has patched anything, and eventlet warns of each fork from then on.
    for name in ("eventlet", "eventlet.patcher"):
        patch.setitem(sys.modules, name, None)
    import sentry_sdk
    from sentry_sdk.transport import Transport

jobs = inprocess.jobs


class Kept(Transport):
    events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        if (event := envelope.get_event()) is not None:
            self.events.append(event)


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    """Sentry in this process, without its integrations: they patch Celery for good."""
    Kept.events = []
    scope = sentry_sdk.get_global_scope()
    before = scope.client
    sentry_sdk.init(dsn="http://public@127.0.0.1:9/1", transport=Kept, default_integrations=False)
    yield Kept.events
    sentry_sdk.get_client().close()
    scope.set_client(before)


def park(job: Job, times: int) -> None:
    for _ in range(times):
        lifecycle.hand_back(job.pk, "default", worker="w1", why="unknown task", delay=0.0)
        Job.objects.update(deadline_at=past())


def test_a_parked_job_is_reported_when_it_is_given_up(jobs: InProcess, events: list[dict[str, Any]]) -> None:
    job = jobs.row(tasks.effect.delay("no code"))
    park(job, 1)
    assert events == []
    park(job, 2)
    (event,) = events
    assert event["message"] == f"No worker can run the job: {tasks.effect.name}"
    assert event["tags"] == {"job": str(job.pk), "task": tasks.effect.name, "queue": jobs.queue, "database": "default"}
    assert "unknown task" in event["contexts"]["job"]["detail"]


def test_what_is_rolled_back_is_not_reported(jobs: InProcess, events: list[dict[str, Any]]) -> None:
    job = jobs.row(tasks.effect.delay("no code"))
    park(job, 1)

    def fails(row: Job) -> None:
        raise ValueError("what follows can't be written")

    with pytest.raises(ValueError, match="follows"):
        lifecycle.hand_back(job.pk, "default", worker="w1", why="unknown task", delay=0.0, failed=fails)
    assert events == []


def test_without_local_variables_no_sensitive_argument_is_sent(
    jobs: InProcess, events: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(exception: BaseException, traceback: Any, **more: Any) -> None:
        sentry_sdk.capture_exception((type(exception), exception, traceback))

    monkeypatch.setitem(sentry_sdk.get_client().options, "include_local_variables", False)
    task_failure.connect(capture)
    try:
        jobs.run(tasks.login, "ann", "s3cret-value")
    finally:
        task_failure.disconnect(capture)
    (event,) = events
    assert "may not log in" in json.dumps(event)
    assert "s3cret-value" not in json.dumps(event)


def test_where_sentry_was_not_initialised_nothing_is_sent(jobs: InProcess) -> None:
    assert not sentry_sdk.get_client().is_active()
    job = jobs.row(tasks.effect.delay("no code"))
    park(job, 2)
    assert jobs.row(job).status == "failed"


# --- a real worker, with all of Sentry's integrations -----------------------------------------------------------------


class Site:
    def __init__(self, stack: Stack, file: Path) -> None:
        self.stack, self.file = stack, file

    def worker(self, **more: Any) -> Worker:
        return self.stack.worker(
            options=["-I", "tests.telemetry.sentry_site"],
            TEST_SENTRY_FILE=str(self.file),
            WORKER_SWEEP_INTERVAL=0.3,
            **more,
        )

    def told(self) -> list[str]:
        """The types of exceptions, and messages; without what Sentry made of log records."""
        # Behind the last line's end another one is being written.
        lines = self.file.read_text().rpartition("\n")[0].splitlines() if self.file.exists() else []
        events = [event for event in map(json.loads, lines) if "logger" not in event]
        return [
            event["exception"]["values"][-1]["type"] if "exception" in event else event["message"] for event in events
        ]


@pytest.fixture
def site(stack: Stack, idle_queue: str, tmp_path: Path) -> Site:
    return Site(stack, tmp_path / "events")


@pytest.mark.servers
def test_a_run_that_died_with_its_worker_is_reported_once(site: Site, outside: Path, gate: Path) -> None:
    victim = site.worker()
    job = tasks.slow_outside.delay("held", str(outside), str(gate))
    wait_until(outside.exists, "the function runs")
    victim.kill9()
    for _ in range(2):
        site.worker()
    gate.touch()
    site.stack.ends(job)
    wait_until(site.told, "the rescue is reported")
    assert site.told() == [f"A run died without a word: {tasks.slow_outside.name}"]


@pytest.mark.servers
def test_what_celerys_integration_sees_is_reported_once(site: Site, outside: Path) -> None:
    site.worker(MAX_CRASHES=1)
    for job in (tasks.kills_itself.delay(str(outside)), tasks.fails.delay("milk")):
        site.stack.ends(job, "failed")
    wait_until(lambda: len(site.told()) >= 2, "both are reported")
    assert sorted(site.told()) == ["CrashLimitExceeded", "ValueError"]
    assert JobEvent.objects.filter(kind="rescue").exists()  # its worker saw it die


@pytest.mark.servers
def test_a_message_that_nobody_can_run_is_reported_once(site: Site) -> None:
    site.worker()
    headers = {"lang": "py", "task": "nowhere.to_be_found", "id": "5f0c1d7e-52f4-4a58-a9a5-6d1f5a1f8f11"}
    site.stack.publish_raw(b"[[], {}, {}]", "application/json", headers)
    wait_until(lambda: Job.objects.filter(status="failed").exists(), "it is parked")
    wait_until(site.told, "the parking is reported")
    assert site.told() == ["No worker can run the job: nowhere.to_be_found"]
