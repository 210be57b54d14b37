"""The admin's list of jobs, and jobs of another database."""

from __future__ import annotations

import contextlib
import datetime
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from reliable_jobs.admin import JobAdmin, listing, story
from reliable_jobs.models import Job, JobEvent
from reliable_jobs.models.selection import STATES
from reliable_jobs.status import Reason, Status
from tests.admin import pages
from tests.admin.pages import LIST, listed, make, page_of, said, url

boss = pages.boss
pytestmark = pytest.mark.django_db

# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_is_newest_first_with_age_attempts_next_look_and_reason(boss: Client) -> None:
    old = make(status=Status.FAILED, reason=Reason.ERROR, error="ValueError: no\nmore lines", failures=3, crashes=1)
    Job.objects.filter(pk=old.pk).update(created_at=timezone.now() - datetime.timedelta(hours=3))
    new = make()
    assert listed(boss) == [new.pk, old.pk]
    text = boss.get(reverse(LIST)).content.decode()
    assert "letters" in text
    assert "3 used, 1 crashed" in text
    assert '<span class="rj-state rj-failed">failed</span>' in text
    assert '<span class="rj-state rj-waiting">waiting</span>' in text
    assert "3 h" in text
    assert "error: ValueError: no" in text
    assert "more lines" not in text
    assert re.search(r"check in 1[0-5] s", text)


@pytest.mark.parametrize("shown", sorted(STATES))
def test_each_state_of_the_filter_lists_its_jobs_and_no_others(boss: Client, shown: str) -> None:
    jobs = {
        "failed": make(status=Status.FAILED, reason=Reason.ERROR),
        "waiting": make(),
        "running": make(status=Status.RUNNING, crashes=1, token=uuid.uuid4()),
        "requeued": make(status=Status.WAITING, requeues=1, reason=Reason.REQUEUED),
        "crashed": make(status=Status.WAITING, reason=Reason.CRASH, crashes=1),
        "parked": make(status=Status.FAILED, reason=Reason.PARKED),
        "succeeded": make(status=Status.SUCCEEDED),
        "cancelled": make(status=Status.CANCELLED),
        "expired": make(status=Status.EXPIRED),
        "retrying": make(reason=Reason.ERROR, failures=1),
    }
    also = {"failed": ["parked"], "waiting": ["requeued", "crashed", "retrying"]}
    expected = {jobs[name].pk for name in [shown, *also.get(shown, [])]}
    assert set(listed(boss, f"?state={shown}")) == expected


def test_a_run_in_progress_is_not_called_crashed(boss: Client) -> None:
    running = make(status=Status.RUNNING, crashes=1, token=uuid.uuid4())
    suspect = make(status=Status.RUNNING, crashes=2, token=uuid.uuid4())
    assert listed(boss, "?state=crashed") == [suspect.pk]
    assert "crashed" not in story.tell(running, timezone.now()).text


def test_a_search_finds_exact_ids_task_names_and_keys_and_nothing_else(boss: Client) -> None:
    by_task, by_key = make(task="shop.ship"), make(key="order-17")
    assert listed(boss, f"?q={by_key.pk}") == [by_key.pk]
    assert listed(boss, f"?q={by_key.pk.hex}") == [by_key.pk]
    assert listed(boss, "?q=shop.ship") == [by_task.pk]
    assert listed(boss, "?q= order-17 ") == [by_key.pk]
    assert listed(boss, "?q=shop") == []
    assert listed(boss, "?q=order-1") == []
    assert listed(boss, "?q=%00") == [by_key.pk, by_task.pk]


def test_a_search_may_say_which_field_it_means(boss: Client) -> None:
    task, key = make(task="nightly"), make(key="nightly")
    assert listed(boss, "?q=nightly") == [task.pk]
    assert listed(boss, "?q=key:nightly") == [key.pk]
    assert listed(boss, "?q=task:nightly") == [task.pk]
    assert listed(boss, f"?q=id:{task.pk}") == [task.pk]
    assert listed(boss, f"?q=key:{task.pk}") == []


def test_a_celery_task_id_that_is_no_uuid_finds_its_receipt(boss: Client) -> None:
    from reliable_jobs.run.arrival import foreign_id

    job = make(id=foreign_id("natural-id-of-elsewhere"))
    assert listed(boss, "?q=natural-id-of-elsewhere") == [job.pk]


@pytest.mark.parametrize(
    "query", ["envelope__contains=secret", "body__gt=x", "error__icontains=x", "status__exact=failed", "worker=x"]
)
def test_nothing_can_be_looked_up_by_the_address_that_is_no_filter(boss: Client, query: str) -> None:
    assert boss.get(f"{reverse(LIST)}?{query}").status_code == 400


def test_what_waits_is_listed_by_due_time_and_what_has_ended_by_its_end(
    boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobAdmin, "list_per_page", 2)

    def order(query: str) -> list[str]:
        text = boss.get(f"{reverse(LIST)}?{query}").content.decode()
        return re.findall(r'<td class="field-queue">(.*?)</td>', text)

    for number, queue in enumerate(("c", "a", "b", "a2")):
        make(queue=queue, due_at=timezone.now() + datetime.timedelta(minutes=number))
        make(status=Status.FAILED, queue=queue, finished_at=timezone.now() - datetime.timedelta(minutes=number))
    assert (order("state=waiting"), order("state=waiting&p=2")) == (["c", "a"], ["b", "a2"])
    assert order("state=failed") == ["c", "a"]


#: Those of indexes; the last one is of a queue at a time.
ORDERS = [f'"reliable_jobs_job"."{order}' for order in ('created_at" DESC', 'finished_at" DESC', 'due_at" ASC')]


@pytest.mark.promise("I10")
def test_no_statement_of_the_list_counts_sorts_or_searches_the_table(
    boss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "BOUND", 5)
    for _ in range(8):
        make(status=Status.FAILED, reason=Reason.ERROR, task="shop.ship", key=uuid.uuid4().hex)
    for query in (
        "",
        "?state=failed",
        "?q=shop.ship",
        "?q=nothing",
        "?_facets=True",
        "?o=3.2",
        "?all=",
        "?state=retrying",
        "?state=waiting",
    ):
        with CaptureQueriesContext(connection) as captured:
            listed(boss, query)
        statements = [one["sql"] for one in captured if "reliable_jobs_job" in one["sql"]]
        assert statements
        for sql in statements:
            if sql.lstrip().startswith("WITH RECURSIVE found"):
                continue  # steps through the queues: tests/test_models.py reads its plan
            assert "LIMIT" in sql or "ANY(" in sql, sql
            assert "LIKE" not in sql.upper(), sql
            ordered = re.findall(r"ORDER BY (.*?) LIMIT", sql)
            assert all(order in ORDERS for order in ordered), sql
            for heavy in ("payload", "envelope", "result", "traceback"):
                assert f'"reliable_jobs_job"."{heavy}"' not in sql, sql


@pytest.mark.promise("I10")
def test_the_list_says_that_there_are_more_than_it_counts(boss: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BOUND", 5)
    for _ in range(5):
        make()
    assert "there are more" not in boss.get(reverse(LIST)).content.decode()
    make()
    text = boss.get(reverse(LIST)).content.decode()
    assert "Only the first 5 are listed; there are more." in text


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked_elsewhere(job: Job) -> Iterator[None]:
    from tests.support.harness import Transaction

    held = Transaction(lambda: list(Job.objects.filter(pk=job.pk).lock()))
    try:
        yield
    finally:
        held.end(commit=False)


@pytest.mark.django_db(transaction=True)
def test_an_atomic_run_shows_by_its_lock_although_its_row_says_waiting(boss: Client) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("a row's lock is PostgreSQL's")
    job = make()
    with _locked_elsewhere(job):
        assert "Probably running; it shows here when it ends. A transaction has held its row since" in page_of(
            boss, job
        )
        assert "waiting, held by a run" in boss.get(reverse(LIST)).content.decode()
        response = boss.post(url("cancel", job), {"confirmed": "yes"}, follow=True)
        assert "1 × running" in said(response)
    assert "Probably running" not in page_of(boss, job)
    assert "held by a run" not in boss.get(reverse(LIST)).content.decode()


# --- another database -------------------------------------------------------------------------------------------------


class _JobsOnSecond:
    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "second" if model._meta.app_label == "reliable_jobs" else None

    db_for_write = db_for_read


@pytest.mark.skipif("second" not in django_settings.DATABASES, reason="needs SECOND_DATABASE_URL")
@pytest.mark.django_db(databases=["default", "second"])
def test_jobs_on_another_database_are_listed_shown_and_requeued_there(boss: Client) -> None:
    with override_settings(DATABASE_ROUTERS=[f"{__name__}._JobsOnSecond"]):
        job = make(status=Status.FAILED, root_id=(parent := make()).pk, parent_id=parent.pk)
        assert job._state.db == "second"
        assert job.pk in listed(boss)
        assert listed(boss, f"?q={job.pk}") == [job.pk]
        assert str(parent.pk) in page_of(boss, job)
        response = boss.post(url("requeue", job), {"confirmed": "yes"}, follow=True)
        assert "1 job requeued." in said(response)
    assert Job.objects.using("second").get(pk=job.pk).requeues == 1
    assert JobEvent.objects.using("second").get().actor == "Grace"
    assert LogEntry.objects.using("default").get().object_id == str(job.pk)
    assert not Job.objects.using("default").exists()


@pytest.mark.skipif("second" not in django_settings.DATABASES, reason="needs SECOND_DATABASE_URL")
@pytest.mark.django_db(databases=["default", "second"])
def test_reads_go_to_the_database_that_is_written_to_not_to_a_replica(boss: Client) -> None:
    class Replica:
        def db_for_read(self, model: Any, **hints: Any) -> str | None:
            return "second" if model._meta.app_label == "reliable_jobs" else None

    job = make(status=Status.FAILED)
    with override_settings(DATABASE_ROUTERS=[Replica()]):
        assert listed(boss) == [job.pk]
        assert "1 job requeued." in said(boss.post(url("requeue", job), {"confirmed": "yes"}, follow=True))


def found_by(client: Client, term: str) -> str:
    response = client.get(reverse("admin:reliable_jobs_job_find"), {"q": term})
    assert response.status_code == 302
    return str(response["Location"]).removeprefix("/admin/reliable_jobs/job/")


def test_what_is_found_alone_is_shown_at_once_and_several_are_listed(boss: Client) -> None:
    alone = make(task="shop.bill", key="order-17")
    for _ in range(2):
        make(task="shop.ship")
    for term in (str(alone.pk), f" {str(alone.pk)[:8].upper()}", alone.pk.hex[:20], "order-17", "task:shop.bill"):
        assert found_by(boss, term) == f"{alone.pk}/change/", term
    assert found_by(boss, "shop.ship") == "?q=shop.ship"
    for nothing in ("", "nobody", "0" * 40, "00000000"):
        assert found_by(boss, nothing) == f"?q={nothing}"
    twins = [make(id=uuid.UUID(f"abcdabcd-0000-4000-8000-00000000000{number}")) for number in (1, 2)]
    assert found_by(boss, "abcdabcd") == "?id=abcdabcd"
    assert set(listed(boss, "?id=abcdabcd")) == {twin.pk for twin in twins}
