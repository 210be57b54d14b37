"""The test suite's project, with the campaign's tasks and instruments. The environment chooses how it dispatches."""

from __future__ import annotations

import os

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, RELIABLE_JOBS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.chaos.apps.ChaosConfig"]
RELIABLE_JOBS = {**RELIABLE_JOBS, "DISPATCH": os.environ.get("TEST_DISPATCH", "on_commit")}
#: Little in the workers' hands and more in the queue, where faults can lose, double and shuffle it.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
