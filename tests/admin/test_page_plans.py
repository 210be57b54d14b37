"""What the pages of the admin read at a million settled, a hundred thousand failed and as many waiting jobs (I10, S4).

Counted in buffers (pages of 8 kB), which a busy machine does not change. ``make soak`` runs it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.models import Job
from reliable_jobs.sweep import sweeper
from tests.admin.mass import a_million, statistics, vacuum
from tests.celery_app import app
from tests.support.harness import Stack

pytestmark = [pytest.mark.soak, pytest.mark.servers, pytest.mark.timeout(1800), pytest.mark.promise("I10")]


@pytest.fixture(scope="module")
def boss(_stack_of_session: Stack, django_db_blocker: Any) -> Iterator[Client]:
    """A superuser's client, on a database of its own that keeps its rows from test to test."""
    stack = Stack(_stack_of_session.server_url, _stack_of_session.broker_url)
    with stack.migrated(django_db_blocker), django_db_blocker.unblock(), stack.active():
        a_million()
        statistics()
        client = Client()
        client.force_login(User.objects.create_superuser("Grace"))
        yield client


def buffers(statement: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}")
        [found] = cursor.fetchone()
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def costs(client: Client, address: str) -> dict[str, int]:
    """The statements of a page about jobs, and what each reads."""
    with CaptureQueriesContext(connection) as captured:
        assert client.get(address).status_code in (200, 302)
    found = [one["sql"] for one in captured if "reliable_jobs_" in one["sql"] and "FOR " not in one["sql"]]
    assert len(found) <= 10, "\n".join(sql[:200] for sql in found)
    return {re.sub(r"\s+", " ", sql)[:300]: buffers(sql.replace("%", "%%")) for sql in found}


def bounded(client: Client, address: str, limit: int) -> None:
    read = costs(client, address)
    total = sum(read.values())
    print(f"\n{address}: {total} buffers in {len(read)} statements")
    assert total <= limit, "\n".join(
        f"{number:7} {sql}" for sql, number in sorted(read.items(), key=lambda one: -one[1])
    )


LIST = "/admin/reliable_jobs/job/"


@pytest.mark.parametrize(
    ("query", "limit"),
    [
        # Of these the newest 10,000 are counted; their pages may not be marked yet as seen by all.
        ("", 2_000),
        ("?task=shop.tasks.task_3", 2_000),
        ("?state=failed", 1_000),
        ("?state=waiting", 1_000),
        ("?state=succeeded", 1_000),
        # Few of the failed ones are this task's: their whole index is read to count them.
        ("?state=failed&task=shop.tasks.task_3", 2_000),
        ("?state=failed&error=builtins.Error2", 1_000),
        ("?state=waiting&queue=queue_3", 1_000),
        ("?state=running", 1_000),
        ("?id=ab12", 1_000),
    ],
)
def test_a_page_of_the_list_reads_little(boss: Client, query: str, limit: int) -> None:
    bounded(boss, LIST + query, limit)


@contextlib.contextmanager
def open_transactions(number: int) -> Iterator[None]:
    """So many that have an id, as those of a busy server have, whatever its database."""
    parameters = connection.get_connection_params()
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            other = stack.enter_context(contextlib.closing(connection.Database.connect(**parameters)))
            other.cursor().execute("SELECT txid_current()")
        yield


def test_the_list_of_waiting_jobs_reads_no_more_on_a_busy_server(boss: Client) -> None:
    with open_transactions(8):
        bounded(boss, f"{LIST}?state=waiting", 1_000)


@pytest.mark.parametrize(("period", "limit"), [("1h", 2_500), ("24h", 2_500), ("7d", 6_000)])
def test_the_overview_reads_little(boss: Client, period: str, limit: int) -> None:
    bounded(boss, reverse("admin:app_list", args=["reliable_jobs"]) + f"?period={period}", limit)


@pytest.mark.parametrize(
    ("page", "period", "limit"),
    [
        *((page, period, 1_500) for page in ("tasks", "queues", "task", "queue") for period in ("1h", "24h")),
        ("task", "7d", 3_000),
        ("queue", "7d", 4_500),
        ("tasks", "7d", 3_000),
        ("queues", "7d", 3_500),
    ],
)
def test_the_pages_of_tasks_and_queues_read_little(boss: Client, page: str, period: str, limit: int) -> None:
    name = {"task": "shop.tasks.task_3", "queue": "queue_3"}.get(page, "")
    bounded(boss, f"{reverse(f'admin:reliable_jobs_job_{page}')}?name={name}&period={period}", limit)


def test_a_jobs_page_reads_little(boss: Client) -> None:
    job = Job.objects.filter(status="failed").first()
    assert job is not None
    bounded(boss, f"{LIST}{job.pk}/change/", 500)


@pytest.mark.parametrize("term", ["nothing at all", "00000000", "shop.tasks.task_3", "key:order-17"])
def test_a_job_is_found_by_reading_little(boss: Client, term: str) -> None:
    bounded(boss, f"{LIST}find/?q={term}", 100)


def test_a_pause_of_a_hundred_thousand_due_jobs_costs_a_sweep_nothing(boss: Client) -> None:
    def sweep() -> int:
        with CaptureQueriesContext(connection) as captured:
            sweeper.sweep(app)
        return sum(
            buffers(one["sql"].replace("%", "%%")) for one in captured if one["sql"].startswith(("SELECT", "WITH"))
        )

    before = sweep()
    lifecycle.pause("queue", "queue_3", "default", actor="Grace")
    Job.objects.filter(queue="queue_3", status="waiting").update(due_at=timezone.now())
    after = sweep()
    print(f"\na sweep reads {before} buffers, under a pause {after}")
    vacuum()  # the other tests read what it has updated
    assert after <= 2 * before + 200
