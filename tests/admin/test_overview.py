"""The landing page of the app in the admin (S4, S5): what is wrong now, what fails, how deep the queues are."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.admin import charts
from reliable_jobs.models import Process, ProcessSeen, Stat
from reliable_jobs.status import ProcessKind, Reason, Status
from tests.admin import pages
from tests.admin.pages import listed, make, staff

pytestmark = pytest.mark.django_db

boss = pages.boss

PAGE = "admin:app_list"


def page(client: Client) -> str:
    response = client.get(reverse(PAGE, args=["reliable_jobs"]))
    assert response.status_code == 200
    return re.sub(r"\s+", " ", response.content.decode())


def process(kind: str, queues: list[str], *, seen: float = 1.0, name: str = "web-3") -> Process:
    made = Process.objects.create(kind=kind, name=name, host="h", pid=1)
    at = timezone.now() - datetime.timedelta(seconds=seen)
    ProcessSeen.objects.create(process=made, seen_at=at, queues=queues)
    return made


def alive() -> None:
    process(ProcessKind.WORKER, ["letters"])
    process(ProcessKind.BEAT, [], name="beat@h")


def test_nothing_is_wrong_where_workers_and_beat_live(boss: Client) -> None:
    alive()
    make()
    text = page(boss)
    assert "Nothing that shows here" in text
    assert 'data-refresh="5000"' in text


def test_it_says_that_nothing_is_alive(boss: Client) -> None:
    process(ProcessKind.WORKER, ["letters"], seen=500)
    assert "No worker, beat or relay is alive." in page(boss)


def test_it_says_that_nothing_sweeps_but_workers(boss: Client) -> None:
    process(ProcessKind.WORKER, ["letters"])
    assert "Neither beat nor a relay is alive." in page(boss)


def test_a_queue_with_work_and_no_worker_is_named_with_who_was_seen_last(boss: Client) -> None:
    alive()
    process(ProcessKind.WORKER, ["mail"], seen=5000, name="web-3")
    make(queue="mail")
    text = page(boss)
    assert "No worker consumes queue &#x27;mail&#x27;; the last one, web-3, was seen at" in text
    assert "-Q mail" in text


def test_a_late_queue_is_named_with_the_age_of_its_oldest_job(boss: Client) -> None:
    alive()
    make(due_at=timezone.now() - datetime.timedelta(minutes=20))
    make(due_at=timezone.now() + datetime.timedelta(minutes=20))
    text = page(boss)
    assert "The oldest due job of queue &#x27;letters&#x27; has waited for 20 min." in text
    assert re.search(r"<td><a [^>]*>1</a></td><td>20 min</td><td><a [^>]*>1</a></td><td>0</td>", text)


def test_a_paused_queue_is_named_with_who_and_since(boss: Client) -> None:
    alive()
    make()
    lifecycle.pause("queue", "letters", "default", actor="Ada")
    text = page(boss)
    assert "Queue &#x27;letters&#x27; is paused by Ada since" in text
    assert "Resume…" in text


def test_a_paused_task_is_named_with_who_since_and_why(boss: Client) -> None:
    alive()
    made = make(task="mail.send")
    make(task="mail.other")
    lifecycle.pause("task", "mail.send", "default", actor="Ada", why="the provider is down")
    text = page(boss)
    found = re.search(
        r"<li>Task &#x27;mail.send&#x27; is paused by Ada since [-\d: ]+\. Why: the provider is down\."
        r' <a href="[^"]*(\?[^"]*)">Show them</a>',
        text,
    )
    assert found
    assert listed(boss, found[1].replace("&amp;", "&")) == [made.pk]


def test_what_fails_now_is_said_with_its_release_and_what_to_do(boss: Client) -> None:
    def failed(error: str, release: str, hours: float, number: int = 1) -> None:
        at = timezone.now() - datetime.timedelta(hours=hours)
        for _ in range(number):
            make(status=Status.FAILED, task="mail.send", error_class=error, release=release, finished_at=at)

    alive()
    failed("ValueError", "v2", 0.1, 3)
    failed("ValueError", "v2", 7)
    failed("KeyError", "v2", 0.1)
    failed("KeyError", "v1", 9)
    failed("IndexError", "v2", 5)
    failed("OSError", "", 0.1)
    text = page(boss)
    said = re.findall(r"<li>(Task [^<]*) <a", text)
    assert [re.split("fails with |:", one)[1] for one in said] == ["ValueError", "OSError", "KeyError"]
    assert "4 jobs since " in said[0]
    assert "3 of them in the last hour. It fails only in release &#x27;v2&#x27;. Look at one" in said[0]
    assert "This is in release &#x27;v2&#x27;; other releases fail too." in said[2]
    assert "release" not in said[1]


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["worker", "worker", "beat"], "Alive: 2 workers, 1 beat, no relay. Beat sweeps."),
        (["relay"], "Alive: no worker, no beat, 1 relay. The relay sweeps."),
        (["worker"], "Alive: 1 worker, no beat, no relay. The workers sweep."),
        ([], "Alive: no worker, no beat, no relay. Nobody sweeps."),
    ],
)
def test_who_is_alive_is_said_in_any_case(boss: Client, kinds: list[str], said: str) -> None:
    for number, kind in enumerate(kinds):
        process(kind, [], name=f"p{number}")
    assert said in page(boss)
    with override_settings(RELIABLE_JOBS={"PRESENCE_INTERVAL": 0}):
        assert "Alive:" not in page(boss)


def test_failures_are_grouped_by_task_error_and_release(boss: Client) -> None:
    alive()
    now = timezone.now()

    def failed(error: str, release: str, hours: float) -> Any:
        at = now - datetime.timedelta(hours=hours)
        return make(status=Status.FAILED, task="mail.send", error_class=error, release=release, finished_at=at)

    chosen = [failed("ValueError", "v2", 0.1), failed("ValueError", "v2", 5)]
    failed("ValueError", "v1", 20)
    failed("KeyError", "v2", 30)
    make(task="mail.send", error_class="ValueError", reason=Reason.ERROR, failures=1)
    text = page(boss)
    rows = re.findall(
        r'<th scope="row"><a href="([^"]*)">mail.send</a></th> <td class="rj-wrap">(\w+)</td>'
        r"<td>(\w+)</td> <td>(\d+)</td><td>(\d+)</td><td>(\w+)</td><td>(\d+)</td>",
        text,
    )
    assert [row[1:] for row in rows] == [
        ("ValueError", "v2", "2", "1", "rising", "1"),
        ("ValueError", "v1", "1", "0", "falling", "0"),
    ]
    query = "?" + rows[0][0].partition("?")[2].replace("&amp;", "&")
    assert set(listed(boss, query)) == {job.pk for job in chosen}
    assert "Run these again…" in text


def test_the_charts_numbers_come_from_the_statistics(boss: Client) -> None:
    alive()
    minute = timezone.now().replace(second=0, microsecond=0) - datetime.timedelta(minutes=3)
    of = {"span": 60, "at": minute, "task": "a", "queue": "letters", "release": ""}
    Stat.objects.create(**of, ending="succeeded", n=8, r4=4, r7=4, w0=8)
    Stat.objects.create(**of, ending="failed", n=2)
    text = page(boss)
    cells = re.findall(r'<td data-value="([^"]*)">', text)
    assert cells[:3] == ["8", "2", "16.0"]
    assert 100 < float(cells[3]) < 128
    assert "20.0 %" in text, "which task fails"
    for period in ("24h", "7d", "nonsense"):
        assert boss.get(reverse(PAGE, args=["reliable_jobs"]) + f"?period={period}").status_code == 200


def test_percentiles_lie_within_their_bucket() -> None:
    assert charts.percentile([0] * 24, 0.5) is None
    assert charts.percentile([4, *[0] * 23], 0.5) == 0.5
    assert charts.percentile([0, 0, 0, 10, *[0] * 20], 0.5) == 6.0
    assert charts.percentile([9, *[0] * 10, 1, *[0] * 12], 0.95) == 1536.0


def test_staff_without_the_permission_see_no_number() -> None:
    make(status=Status.FAILED, task="mail.send")
    client = staff("pause_job")
    response = client.get(reverse(PAGE, args=["reliable_jobs"]))
    assert response.status_code == 404 or "mail.send" not in response.content.decode()
    text = page(staff("view_job"))
    assert "mail.send" in text
    assert "Run these again" not in text
    assert "Pause…" not in text


@pytest.mark.promise("I10")
def test_the_page_makes_at_most_ten_queries(boss: Client) -> None:
    alive()
    for number in range(40):
        make(queue=f"q{number}")
        make(status=Status.FAILED, task=f"t{number}")
    page(boss)
    with CaptureQueriesContext(connection) as captured:
        page(boss)
    of_page = [one["sql"] for one in captured if "reliable_jobs_" in one["sql"]]
    assert len(of_page) <= 10, "\n".join(of_page)


def test_markup_in_names_is_shown_and_not_run(boss: Client) -> None:
    alive()
    evil = "<script>alert(1)</script>"
    make(queue=evil)
    make(status=Status.FAILED, task=evil, error_class=evil, release=evil)
    process(ProcessKind.WORKER, [evil], name=evil, seen=600)
    lifecycle.pause("queue", evil, "default", actor=evil, why=evil)
    assert evil not in page(boss)
