"""Rows, people and pages for tests of the admin."""

from __future__ import annotations

import datetime
import json
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from reliable_jobs.models import Job

LIST = "admin:reliable_jobs_job_changelist"

NOW = datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.timezone.utc)


def make(**columns: Any) -> Job:
    now = timezone.now()
    headers = columns.pop("headers", {"task": "tests.testapp.tasks.add"})
    values: dict[str, Any] = {
        "task": "tests.testapp.tasks.add",
        "queue": "letters",
        "due_at": now,
        "check_at": now + datetime.timedelta(seconds=15),
        "sends": 1,
        "payload": json.dumps([[17, "Ada"], {"urgent": True}, {}]).encode(),
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "envelope": json.dumps(
            {"v": 1, "sensitive": columns.pop("sensitive", False), "exchange": "", "routing_key": "letters"}
            | {"headers": headers, "properties": {}}
        ),
    }
    values.update(columns)
    if values.get("status") in ("succeeded", "failed", "cancelled", "expired"):
        values.setdefault("started_at", now)
        values.setdefault("finished_at", now)
    return Job.objects.create(**values)


def staff(*permissions: str) -> Client:
    user = User.objects.create_user(f"staff-{uuid.uuid4().hex[:6]}", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def boss() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("Grace"))
    return client


def listed(client: Client, query: str = "") -> list[uuid.UUID]:
    response = client.get(reverse(LIST) + query)
    assert response.status_code == 200
    return [job.pk for job in response.context["cl"].result_list]


def page_of(client: Client, job: Job) -> str:
    response = client.get(reverse("admin:reliable_jobs_job_change", args=[job.pk]))
    assert response.status_code == 200
    return response.content.decode()


def url(operation: str, job: Job) -> str:
    return reverse(f"admin:reliable_jobs_job_{operation}", args=[job.pk])


def choose(operation: str, jobs: list[Job], **more: Any) -> dict[str, Any]:
    return {"action": operation, "_selected_action": [str(job.pk) for job in jobs], **more}


def said(response: Any) -> str:
    return " | ".join(str(message) for message in response.context["messages"])
