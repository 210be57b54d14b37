"""Groups under real workers: last parts that commit at the same moment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from celery import chord

from reliable_jobs.models import Job, JobGroup
from tests.support.harness import PATIENCE, Stack, wait_until
from tests.testapp import tasks
from tests.workflow import chords

isolation = chords.isolation
pytestmark = [pytest.mark.servers, pytest.mark.promise("I2"), pytest.mark.promise("I3")]


@pytest.mark.parametrize("rounds", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_two_last_parts_that_run_at_the_same_time_write_one_body(
    stack: Stack, isolation: str, tmp_path: Path, rounds: int
) -> None:
    """Each part waits for the other and then ends: by the look that travels behind the COMMIT. Nobody sweeps."""
    worker = stack.worker(concurrency=2)
    for number in range(rounds):
        parts = [tasks.meets.si(str(tmp_path / f"{number}"), part) for part in range(2)]
        chord(parts, tasks.effect.si(f"body {number}")).apply_async()
    bodies = Job.objects.filter(task=tasks.effect.name, status="succeeded")
    wait_until(lambda: bodies.count() == rounds, f"{rounds} bodies", PATIENCE + rounds / 10, every=0.2)
    assert Job.objects.filter(task=tasks.effect.name).count() == rounds
    assert [stack.effects(f"body {number}") for number in range(rounds)] == [1] * rounds
    assert set(JobGroup.objects.values_list("state", flat=True)) == {"done"}
    assert len(os.listdir(tmp_path)) == 2 * rounds
    assert "could not be decided" not in worker.log
