"""Acts on all that a filter selects, in the admin (S4): who may, what is asked, what comes of it."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from reliable_jobs.models import ActState, BulkAct, Job, Selection
from reliable_jobs.status import Status
from reliable_jobs.sweep import acts
from tests.admin import pages
from tests.admin.pages import LIST, choose, listed, make, said, staff

pytestmark = pytest.mark.django_db

boss = pages.boss


def ask(verb: str, query: str) -> str:
    return reverse("admin:reliable_jobs_job_act", args=[verb]) + query


def page(client: Client, act: BulkAct) -> str:
    response = client.get(reverse("admin:reliable_jobs_bulkact_change", args=[act.pk]))
    assert response.status_code == 200
    return response.content.decode()


def failed(**columns: Any) -> Job:
    # A second ago: SQLite's clock has milliseconds only.
    columns.setdefault("finished_at", timezone.now() - datetime.timedelta(seconds=1))
    return make(status=Status.FAILED, error_class="ValueError", **columns)


def test_the_page_that_asks_counts_by_error_and_changes_nothing(boss: Client) -> None:
    for kind in ("ValueError", "ValueError", "KeyError"):
        make(status=Status.FAILED, error_class=kind, task="shop.ship")
    failed(task="shop.bill")
    text = boss.get(ask("requeue", "?state=failed&task=shop.ship")).content.decode()
    assert "3 jobs" in text
    assert "<td>ValueError</td><td>2</td>" in text
    assert "<td>KeyError</td><td>1</td>" in text
    assert "state: failed, task: shop.ship" in text
    assert not BulkAct.objects.exists()
    assert not Job.objects.filter(requeues__gt=0).exists()


def test_a_small_act_is_done_when_its_page_comes(boss: Client) -> None:
    job, other = failed(task="shop.ship"), failed(task="shop.bill")
    response = boss.post(ask("requeue", "?state=failed&task=shop.ship"), {"queue": "", "rate": ""}, follow=True)
    act = BulkAct.objects.get()
    assert (act.state, act.done, act.actor, act.expected) == (ActState.DONE, 1, "Grace", 1)
    assert "Requeue all (state: failed, task: shop.ship" in response.content.decode()
    assert Job.objects.get(pk=job.pk).requeues == 1
    assert Job.objects.get(pk=other.pk).requeues == 0
    assert LogEntry.objects.get().object_id == str(act.pk)


def test_all_are_requeued_to_another_queue_at_a_rate(boss: Client) -> None:
    for _ in range(5):
        failed(finished_at=timezone.now() - datetime.timedelta(hours=1))
    boss.post(ask("requeue", "?state=failed"), {"queue": "slow", "rate": "0.5"})
    act = BulkAct.objects.get()
    assert (act.queue, act.rate, act.state) == ("slow", 0.5, ActState.RUNNING)
    assert 'data-refresh="2000"' in page(boss, act)
    BulkAct.objects.update(rate=None)
    acts.sweep("default")
    assert set(Job.objects.values_list("queue", flat=True)) == {"slow"}


def test_select_all_of_the_list_leads_to_the_page_that_asks(boss: Client) -> None:
    job = failed()
    response = boss.post(f"{reverse(LIST)}?state=failed", choose("requeue", [job], select_across="1"))
    assert (response.status_code, response["Location"]) == (302, ask("requeue", "?state=failed"))


def test_an_act_without_a_state_is_refused_with_what_to_do(boss: Client) -> None:
    failed()
    assert "Choose the state first" in said(boss.get(ask("requeue", ""), follow=True))
    assert "Choose the state first" in said(boss.post(ask("cancel", "?state=failed"), {}, follow=True))
    assert not BulkAct.objects.exists()


def test_a_time_of_the_clock_means_the_latest_one_that_was_shown(boss: Client) -> None:
    hour = datetime.timedelta(hours=1)
    at = timezone.localtime() - 2 * hour
    chosen = failed(finished_at=at + hour)
    failed(finished_at=at - hour)
    text = boss.get(ask("requeue", f"?state=failed&since={at:%H:%M}&task=&q=")).content.decode()
    assert "1 job" in text
    fixed = re.search(r'<form method="post" action="([^"]+)"', text)
    assert fixed
    assert "since=20" in fixed[1]
    boss.post(ask("requeue", fixed[1].replace("&amp;", "&")), {"queue": "", "rate": ""})
    assert list(Job.objects.filter(requeues=1).values_list("pk", flat=True)) == [chosen.pk]


def test_what_a_search_finds_is_no_filter_of_an_act(boss: Client) -> None:
    job = failed(key="order-17")
    answer = boss.get(ask("requeue", "?state=failed&q=order-17"), follow=True)
    assert "empty the field Find" in said(answer)
    boss.post(ask("requeue", "?state=failed&q=order-17"), {"queue": "", "rate": ""})
    assert Job.objects.get(pk=job.pk).requeues == 0


@pytest.mark.parametrize(
    "query",
    ["?state=nonsense", "?since=yesterday", "?id=xyz", "?error=ValueError&state=waiting", "?id=-", "?until=9999-12-31"],
)
def test_a_filter_that_cant_be_lists_nothing_and_says_why(boss: Client, query: str) -> None:
    make()
    assert listed(boss, query) == []
    assert "Nothing is listed" in said(boss.get(reverse(LIST) + query))
    boss.post(ask("requeue", query), {"queue": "", "rate": ""})
    assert not BulkAct.objects.exists()


def test_each_filter_narrows_the_list(boss: Client) -> None:
    now = timezone.now()
    wanted = failed(task="a.b", queue="q", release="r1", key="order-17", finished_at=now - datetime.timedelta(hours=2))
    make(status=Status.FAILED, error_class="KeyError", release="r2", finished_at=now - datetime.timedelta(hours=9))
    make()
    begin = (now - datetime.timedelta(hours=3)).isoformat().replace("+", "%2B")
    end = (now - datetime.timedelta(hours=1)).isoformat().replace("+", "%2B")
    for query in (
        "state=failed&task=a.b",
        "queue=q",
        "state=failed&error=ValueError",
        "state=failed&release=r1",
        f"state=failed&since={begin}&until={end}",
        "key=order-",
        f"id={str(wanted.pk)[:13]}",
    ):
        assert listed(boss, f"?{query}") == [wanted.pk], query


def test_ended_jobs_are_listed_by_when_they_ended(boss: Client) -> None:
    now = timezone.now()
    first, second = (failed(finished_at=now - datetime.timedelta(hours=hours)) for hours in (5, 1))
    Job.objects.filter(pk=first.pk).update(created_at=now)
    assert listed(boss, "?state=failed") == [second.pk, first.pk]


def test_who_may_not_requeue_is_offered_and_allowed_nothing() -> None:
    failed()
    make()
    client = staff("view_job", "cancel_job")
    text = client.get(reverse(LIST) + "?state=failed").content.decode()
    assert "rj-all-requeue" not in text
    assert client.get(ask("requeue", "?state=failed")).status_code == 403
    assert client.post(ask("requeue", "?state=failed"), {"rate": "", "queue": ""}).status_code == 403
    assert "rj-all-cancel" in client.get(reverse(LIST) + "?state=waiting").content.decode()
    act = acts.begin(Selection(state="failed"), "default", verb="requeue", actor="Grace")
    text = page(client, act)
    assert "rj-stop-button" not in text
    assert client.post(reverse("admin:reliable_jobs_bulkact_stop", args=[act.pk])).status_code == 403
    assert BulkAct.objects.get().state == ActState.RUNNING


def test_who_may_not_view_jobs_sees_no_act() -> None:
    act = acts.begin(Selection(state="failed"), "default", verb="requeue", actor="Grace")
    client = staff("requeue_job")
    assert client.get(reverse("admin:reliable_jobs_bulkact_change", args=[act.pk])).status_code == 403
    assert client.get(reverse("admin:reliable_jobs_bulkact_changelist")).status_code == 403
    assert client.get(ask("requeue", "?state=failed")).status_code == 403


def test_stop_and_undo_take_a_post(boss: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "STEP", 1)
    for _ in range(2):
        failed()
    act = acts.begin(Selection(state="failed"), "default", verb="requeue", actor="Grace")
    stop, undo = (reverse(f"admin:reliable_jobs_bulkact_{name}", args=[act.pk]) for name in ("stop", "undo"))
    assert boss.get(stop).status_code == boss.get(undo).status_code == 403
    acts.sweep("default")
    assert "rj-stop-button" in page(boss, act)
    assert "It takes no further jobs" in said(boss.post(stop, follow=True))
    boss.post(undo)
    assert sorted(Job.objects.values_list("status", flat=True)) == [Status.CANCELLED, Status.FAILED]
    back = BulkAct.objects.exclude(pk=act.pk).get()
    assert (back.verb, back.done, back.state) == ("cancel", 1, ActState.DONE)


def test_a_forged_post_is_refused() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("Grace"))
    failed()
    assert client.post(ask("requeue", "?state=failed"), {"rate": "", "queue": ""}).status_code == 403
    assert not BulkAct.objects.exists()


def test_markup_in_a_filter_is_shown_and_not_run(boss: Client) -> None:
    evil = "<script>alert(1)</script>"
    for query in (f"?state=failed&task={evil}", f"?state=failed&queue={evil}", f"?q={evil}"):
        assert evil not in boss.get(reverse(LIST) + query).content.decode()
    assert evil not in boss.get(ask("requeue", f"?state=failed&task={evil}")).content.decode()
    act = acts.begin(Selection(state="failed", task=evil), "default", verb="requeue", actor=evil)
    assert evil not in page(boss, act)
    assert evil not in boss.get(reverse("admin:reliable_jobs_bulkact_changelist")).content.decode()


@pytest.mark.slow
def test_10_000_jobs_are_requeued_without_loading_a_payload(boss: Client) -> None:
    now = timezone.now()
    Job.objects.bulk_create(
        [
            Job(
                task="shop.ship",
                queue="letters",
                status=Status.FAILED,
                finished_at=now,
                due_at=now,
                payload=b"[[], {}, {}]",
                content_type="application/json",
                content_encoding="utf-8",
                envelope="{}",
            )
            for _ in range(10_000)
        ],
        batch_size=1000,
    )
    other = make(status=Status.SUCCEEDED)
    with CaptureQueriesContext(connection) as captured:
        assert "10,000 jobs" in boss.get(ask("requeue", "?state=failed")).content.decode()
        boss.post(ask("requeue", "?state=failed"), {"queue": "", "rate": ""})
        while acts.sweep("default"):
            pass
    assert not [one["sql"][:200] for one in captured if re.search(r'SELECT[^;]*"payload"[^;]*FROM', one["sql"][:3000])]
    act = BulkAct.objects.get()
    assert (act.state, act.done, act.skipped) == (ActState.DONE, 10_000, 0)
    assert Job.objects.filter(status=Status.WAITING, requeues=1).count() == 10_000
    assert Job.objects.get(pk=other.pk).requeues == 0


def test_an_act_of_another_release_is_shown(boss: Client) -> None:
    act = acts.begin(Selection(state="failed"), "default", verb="requeue", actor="Grace")
    BulkAct.objects.update(selection='{"state": "unheard-of"}')
    assert "jobs that this release can" in page(boss, act)
    assert boss.get(reverse("admin:reliable_jobs_bulkact_changelist")).status_code == 200


def test_json_that_python_refuses_is_an_error_of_the_form(boss: Client) -> None:
    job = make()
    for odd in ("[" * 100_000, f"[{'9' * 5000}]"):
        answer = boss.post(reverse("admin:reliable_jobs_job_rerun", args=[job.pk]), {"args": odd, "kwargs": ""})
        assert answer.status_code == 200
        assert "errorlist" in answer.content.decode()
    assert Job.objects.count() == 1
