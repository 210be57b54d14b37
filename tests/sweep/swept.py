"""Rows for sweeps."""

from __future__ import annotations

from typing import Any

from django.test import override_settings

from reliable_jobs.models import Job
from tests.testapp import tasks


def relayed(count: int = 1, **values: Any) -> list[Job]:
    """Rows as a relay's requests leave them, with some columns set."""
    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        ids = [tasks.effect.delay(str(n)).id for n in range(count)]
    if values:
        Job.objects.filter(pk__in=ids).update(**values)
    return list(Job.objects.filter(pk__in=ids))
