"""Sites whose ``DATABASES`` is not the test suite's: how the database is configured, and what stands before it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection

from tests.databases import by_hand
from tests.harness import Stack
from tests.testapp import tasks

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def overriding(**entries: Any) -> dict[str, str]:
    """For a worker: entries of its ``DATABASES["default"]``."""
    return {"TEST_DATABASE": json.dumps(entries)}


@pytest.mark.promise("I2")
def test_a1_databases_as_startproject_writes_it_runs_every_job(stack: Stack) -> None:
    assert set(by_hand(stack.database_url)) == {"ENGINE", "NAME", "USER", "HOST", "PORT"}
    assert "DISABLE_SERVER_SIDE_CURSORS" not in connection.settings_dict
    stack.worker(concurrency=1)
    results = [tasks.effect.delay(f"a1 {number}") for number in range(6)]
    for result in results:
        job = stack.ends(result)
        assert (job.crashes, job.attempt, job.interruptions) == (0, 0, 0)
    assert sum(stack.effects(f"a1 {number}") for number in range(6)) == 6
