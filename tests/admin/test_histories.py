"""The pages Tasks and Queues, and those of one task and one queue (S4, S5): numbers, links, odd names, permissions."""

from __future__ import annotations

import datetime
import html
import re
import zoneinfo
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import connection
from django.http import QueryDict
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.admin import charts
from reliable_jobs.models import Job, QueueStat, Stat
from reliable_jobs.status import ProcessKind, Reason, Status
from tests.admin import pages
from tests.admin.pages import listed, make, staff
from tests.admin.test_overview import process

pytestmark = pytest.mark.django_db

boss = pages.boss

EVIL = "<script>alert('rj')</script>"
ODD = [
    "",
    " ",
    "a/b/../c",
    'it\'s "quoted"',
    "100%25 & more=1?#x",
    "Grüße, 世界 🦀",
    EVIL,
    "x" * 255,
    "..",
    "line\nbreak",
]
KINDS = ["task", "queue"]


def address(kind: str, name: str, **more: str) -> str:
    return f"{reverse(f'admin:reliable_jobs_job_{kind}')}?{urlencode({'name': name, **more})}"


def get(client: Client, where: str) -> str:
    answer = client.get(where)
    assert answer.status_code == 200, where
    return re.sub(r"\s+", " ", answer.content.decode())


def part(text: str, section: str) -> str:
    """The section of a page that has this id; "" where it has none."""
    found = re.search(rf'<section id="{section}".*?</section>', text)
    return found[0] if found else ""


def stat(minutes: float = 3, *, span: int = 60, **columns: Any) -> None:
    at = timezone.now() - datetime.timedelta(minutes=minutes)
    at = at.replace(second=0, microsecond=0) if span == 60 else at.replace(minute=0, second=0, microsecond=0)
    of = {"task": "mail.send", "queue": "letters", "ending": "succeeded", "release": "v2", "n": 1}
    Stat.objects.create(span=span, at=at, **{**of, **columns})


def numbers(text: str) -> list[list[str]]:
    """The values of the table beside the charts, row by row, without the times."""
    [table] = re.findall(r'<table id="rj-numbers".*?</table>', text)
    return [re.findall(r'<td data-value="([^"]*)">', row) for row in table.split("<tr>")[2:]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_of_that_one_alone(boss: Client, kind: str) -> None:
    stat(n=8, r4=8, w3=8)
    stat(n=2, ending="failed")
    stat(n=5, ending="retried")
    stat(n=4, ending="crashed")
    stat(n=70, task="other.task", queue="other", r4=70)
    stat(n=70, ending="failed", task="other.task", queue="other")
    name = {"task": "mail.send", "queue": "letters"}[kind]
    text = get(boss, address(kind, name))
    [row] = numbers(text)
    assert row[:2] == ["8", "2"]
    assert 8 <= float(row[2]) <= 16, "a run took from 8 to 16 ms"
    assert 4 <= float(row[4]) <= 8, "a wait took from 4 to 8 ms"
    assert row[6:] == ["5", "4"], "retried and crashed runs"
    assert "other.task" not in part(text, "rj-tasks")


@pytest.mark.parametrize("kind", KINDS)
def test_minutes_without_an_end_between_others_are_zeros_without_times(boss: Client, kind: str) -> None:
    stat(9, n=5, r3=5)
    stat(6, n=4, r3=4)
    rows = numbers(get(boss, address(kind, {"task": "mail.send", "queue": "letters"}[kind])))
    assert [row[0] for row in rows] == ["5", "0", "0", "4"]
    assert rows[1][2] == ""


@pytest.mark.parametrize(("period", "expected"), [("1h", 1), ("24h", 3), ("7d", 7), ("nonsense", 1)])
def test_a_period_has_its_own_points(boss: Client, period: str, expected: int) -> None:
    stat(n=1)
    for span, minutes, number in ((3600, 5, 1), (3600, 600, 2), (3600, 3000, 4)):
        stat(minutes, span=span, n=number)
    text = get(boss, address("task", "mail.send", period=period))
    assert sum(int(row[0]) for row in numbers(text)) == expected
    other = html.unescape(re.findall(r'<a href="([^"]*period=7d)">', text)[0]) if expected != 7 else "?period=24h"
    assert expected == 7 or other == "?name=mail.send&period=7d"


@pytest.mark.parametrize(
    "name", ["UTC", "Asia/Kolkata", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns", ""]
)
@pytest.mark.parametrize("day", [(2026, 4, 5), (2026, 10, 4), (2026, 10, 25), (2026, 3, 29), (2026, 12, 1)])
def test_all_hours_are_named_that_the_statistics_may_have_cut(name: str, day: tuple[int, int, int]) -> None:
    zone = zoneinfo.ZoneInfo(name) if name else None
    until = datetime.datetime(*day, 17, 23, 45, 7, tzinfo=datetime.timezone.utc if zone else None)
    since = until - datetime.timedelta(days=7)
    cut = set()
    for number in range(7 * 24 * 60):
        at = since + datetime.timedelta(minutes=number)
        at = (at.astimezone(zone) if zone else at).replace(minute=0, second=0, microsecond=0)
        cut.add(at.astimezone(datetime.timezone.utc) if zone else at)
    named = charts.hours(since, until, zone)
    assert {at for at in cut if at >= since} - set(named) == set()
    assert since <= named[0] <= named[-1] <= until
    assert len(named) <= 2 * 7 * 24


def test_a_task_shows_its_queues_and_releases_and_a_queue_its_tasks(boss: Client) -> None:
    stat(queue="letters", release="v1", r4=1, sum_ms=900)
    stat(queue="slow", release="v2", r12=1, sum_ms=4000)
    stat(queue="slow", task="shop.ship", release="v2")
    text = get(boss, address("task", "mail.send"))
    assert re.findall(r'job/queue/\?name=(\w+)">', part(text, "rj-of-queues")) == ["slow", "letters"]
    assert re.findall(r'<th scope="row">(v\d)</th>', part(text, "rj-releases")) == ["v2", "v1"]
    text = get(boss, address("queue", "slow"))
    assert re.findall(r'job/task/\?name=([\w.]+)">', part(text, "rj-tasks")) == ["mail.send", "shop.ship"]


def test_a_queue_shows_how_deep_it_was(boss: Client) -> None:
    now = timezone.now().replace(second=0, microsecond=0)
    for minutes, waiting in ((2, 30), (3, 50), (60 * 26, 90)):
        at = now - datetime.timedelta(minutes=minutes)
        QueueStat.objects.create(at=at, queue="letters", waiting=waiting, delayed=2, running=1, oldest_s=7)
        QueueStat.objects.create(at=at, queue="other", waiting=999, delayed=0, running=0, oldest_s=7)

    def shown(period: str) -> list[int]:
        text = part(get(boss, address("queue", "letters", period=period)), "rj-depth")
        return [int(row.split('data-value="')[2].split('"')[0]) for row in text.split("<tr>")[2:]]

    assert shown("1h") == [50, 30]
    assert max(shown("24h")) == 50
    assert max(shown("7d")) == shown("7d")[0] == 90


@pytest.mark.parametrize("kind", KINDS)
def test_the_links_lead_to_the_jobs_that_they_name(boss: Client, kind: str) -> None:
    of = {"task": "mail.send", "queue": "letters"}
    away = {"task": "other", "queue": "other"}
    old = timezone.now() - datetime.timedelta(days=3)
    made = {
        "waiting": make(**of),
        "running": make(**of, status=Status.RUNNING),
        "retrying": make(**of, reason=Reason.ERROR, failures=1, error_class="ValueError"),
        "failed": make(**of, status=Status.FAILED, error_class="ValueError"),
        "old": make(**of, status=Status.FAILED, error_class="ValueError", finished_at=old),
    }
    for status in (Status.WAITING, Status.RUNNING, Status.FAILED):
        make(**away, status=status, error_class="ValueError")
    text = get(boss, address(kind, of[kind]))
    [lists] = re.findall(r'<p class="rj-links" id="rj-lists">(.*?)</p>', text)
    links = {label: html.unescape(link) for link, label in re.findall(r'<a href="([^"]*)">([^<]*)</a>', lists)}

    def behind(label: str) -> set[Any]:
        return set(listed(boss, "?" + links[label].partition("?")[2]))

    assert behind("All jobs") == {job.pk for job in made.values()}
    assert behind("Waiting") == {made["waiting"].pk, made["retrying"].pk}
    assert behind("Running") == {made["running"].pk}
    assert behind("Failing now: waiting for another attempt") == {made["retrying"].pk}
    assert behind("Failed, last 24 hours") == {made["failed"].pk}
    failing = part(text, "rj-failing")
    assert re.search(r"<td>1</td><td>1</td><td>rising</td><td>1</td>", failing)
    [again] = re.findall(r'<a href="([^"]*)">Run these again…', failing)
    asked = boss.get(html.unescape(again)).content.decode()
    assert "1 job" in asked
    assert f"{kind}: {of[kind]}" in asked


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_paused_and_resumed_from_there(boss: Client, kind: str) -> None:
    name = "tests.testapp.tasks.add"
    text = get(boss, address(kind, name))
    assert f"pause/add/?kind={kind}&amp;name={name}" in text
    lifecycle.pause(kind, name, "default", actor="Ada", why="the provider is down")
    text = get(boss, address(kind, name))
    assert f"{kind.title()} &#x27;{name}&#x27; is paused by Ada since" in text
    assert "Why: the provider is down." in text
    assert "Resume…" in text
    assert "pause/add/?kind" not in text
    assert "is paused" not in get(boss, address(kind, "another"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ODD)
def test_any_name_has_its_page_and_a_link_to_it(boss: Client, kind: str, name: str) -> None:
    of = {kind: name}
    stat(**of, n=7)
    stat(n=1, **{kind: "another"})
    job = make(**of, status=Status.FAILED, error_class="ValueError")
    make(**of)
    make(**{kind: "another"}, status=Status.FAILED, error_class="ValueError")
    for page in (reverse(f"admin:reliable_jobs_job_{kind}s"), reverse("admin:app_list", args=["reliable_jobs"])):
        text = get(boss, page)
        found = [html.unescape(link) for link in re.findall(rf'<a href="([^"]*job/{kind}/\?name=[^"]*)">', text)]
        assert [link for link in found if QueryDict(link.partition("?")[2])["name"] == name], page
        assert EVIL not in text
    text = get(boss, address(kind, name))
    assert [row[0] for row in numbers(text)] == ["7"]
    assert EVIL not in text
    queries = [html.unescape(one) for one in re.findall(r'job/\?([^"]*)"', text)]
    queries += [html.unescape(one) for one in re.findall(r'acts/requeue/\?([^"]*)"', text)]
    others = set(Job.objects.exclude(**of).values_list("pk", flat=True))
    for query in queries:
        assert others.isdisjoint(listed(boss, f"?{query}")), query
    assert bool(queries) == (name.strip() == name != "")
    assert job.pk not in others


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_name_that_can_be_one_all_are_listed(boss: Client, kind: str) -> None:
    page = reverse(f"admin:reliable_jobs_job_{kind}")
    for query in ("", "?name=%00", "?period=7d"):
        answer = boss.get(page + query)
        assert answer.status_code == 302
        assert answer["Location"].endswith(f"/job/{kind}s/")
    assert "Nothing has ended in this time" in get(boss, address(kind, "never heard of"))


@pytest.mark.parametrize("kind", KINDS)
def test_who_may_not_look_sees_nothing_and_who_may_only_look_no_buttons(kind: str) -> None:
    stat()
    make(status=Status.FAILED, task="mail.send", error_class="ValueError")
    lifecycle.pause("queue", "elsewhere", "default", actor="Ada")
    where = [
        address(kind, {"task": "mail.send", "queue": "letters"}[kind]),
        reverse(f"admin:reliable_jobs_job_{kind}s"),
    ]
    for client in (staff(), staff("pause_job", "requeue_job")):
        assert [client.get(one).status_code for one in where] == [403, 403]
    for one in where:
        text = get(staff("view_job"), one)
        assert not re.search("Run these again|Pause…|Resume…", text), one
    assert "Run these again…" in get(staff("view_job", "requeue_job"), where[0])
    assert "Pause…" in get(staff("view_job", "pause_job"), where[0])
    assert Client().get(where[0]).status_code == 302


@pytest.mark.promise("I10")
@pytest.mark.parametrize("kind", KINDS)
def test_each_page_makes_at_most_ten_queries(boss: Client, kind: str) -> None:
    for number in range(40):
        name = f"one-{number}"
        make(queue=name, task=name)
        make(status=Status.FAILED, task=name, queue="letters", error_class=name)
        stat(n=3, task=name, queue=name, release=name)
        lifecycle.pause(kind, name, "default", actor="Ada")
        process(ProcessKind.WORKER, [name], name=name)
    pages_of_it = [reverse(f"admin:reliable_jobs_job_{kind}s"), address(kind, "one-7"), address(kind, "letters")]
    for one in pages_of_it:
        with CaptureQueriesContext(connection) as captured:
            get(boss, one)
        of_page = [query["sql"] for query in captured if "reliable_jobs_" in query["sql"]]
        assert len(of_page) <= 10, "\n".join(of_page)


def test_a_jobs_page_leads_to_its_task_and_queue(boss: Client) -> None:
    job = make(task="mail.send", queue="a/b?c=1&d")
    stat(queue="a/b?c=1&d")
    text = pages.page_of(boss, job)
    [links] = re.findall(r'id="rj-histories">(.*?)</p>', text)
    for link in re.findall(r'<a href="([^"]*)">', links):
        assert [row[0] for row in numbers(get(boss, html.unescape(link)))] == ["1"]
