"""Times of rows, and rows as they are now."""

from __future__ import annotations

import datetime

from django.utils import timezone

from reliable_jobs.models import Job


def past(seconds: float = 60) -> datetime.datetime:
    return timezone.now() - datetime.timedelta(seconds=seconds)


def future(seconds: float = 60) -> datetime.datetime:
    return timezone.now() + datetime.timedelta(seconds=seconds)


def now(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)
