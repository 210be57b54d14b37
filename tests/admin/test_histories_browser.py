"""The pages of one task and one queue in a real Chromium: reached by clicks, drawn, dark, as wide as a telephone."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest
from django.test import override_settings
from django.utils import timezone

from reliable_jobs.models import QueueStat, Stat
from reliable_jobs.status import Status
from tests.admin import driving, test_admin_browser
from tests.admin.driving import Admin
from tests.admin.pages import make
from tests.presence.test_presence import made

if TYPE_CHECKING:
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

browser = driving.browser
page = test_admin_browser.page

EVIL = "it's/<img src=x onerror=\"document.title='taken over'\">%41 Grüße"


def history(task: str, queue: str) -> None:
    """An hour of a task in a queue that fails more and more."""
    this = timezone.now().replace(second=0, microsecond=0)
    for number in range(50):
        at = this - datetime.timedelta(minutes=number)
        of = {"span": 60, "at": at, "task": task, "queue": queue, "release": "2026.12.1"}
        Stat.objects.create(**of, ending="succeeded", n=40 + number % 7, r5=30, r8=10, w3=40, sum_ms=900, max_ms=230)
        Stat.objects.create(**of, ending="failed", n=max(0, 9 - number // 3))
        Stat.objects.create(**of, ending="retried", n=2 * max(0, 9 - number // 3))
        Stat.objects.create(**of, ending="crashed", n=number % 11 == 0)
        QueueStat.objects.create(at=at, queue=queue, waiting=300 - 5 * number, delayed=20, running=4, oldest_s=60)
    for _ in range(7):
        make(status=Status.FAILED, task=task, queue=queue, error_class="smtplib.SMTPServerDisconnected")
    for _ in range(3):
        make(task=task, queue=queue)
    made("celery@web-1", queues=[queue])


def charts(page: Admin) -> list[WebElement]:
    return list(page.browser.find_elements("css selector", ".rj-chart canvas"))


@pytest.mark.parametrize(("kind", "drawn"), [("task", 4), ("queue", 5)])
def test_one_click_from_the_overview_and_from_the_page_of_all(page: Admin, kind: str, drawn: int) -> None:
    history("mail.send", "letters")
    section, name = {"task": ("tasks", "mail.send"), "queue": ("queues", "letters")}[kind]
    page.open("app_list", "reliable_jobs")
    page.leave_by(f"#rj-{section} th a")
    assert f"{kind.title()} {name}" in page.find("#content h1").text
    page.wait_until(lambda: len(charts(page)) == drawn)
    page.picture(f"one-{kind}")
    page.open("app_list", "reliable_jobs")
    page.leave_by(f"#rj-{section} .rj-more")
    page.picture(f"all-{kind}s")
    page.leave_by("#rj-rows th a")
    page.wait_until(lambda: len(charts(page)) == drawn)
    page.leave_by("a[href*='period=24h']")
    assert f"{kind.title()} {name}" in page.find("#content h1").text
    assert "last 24 hours" in page.find("#rj-charts").text
    page.open(f"reliable_jobs_job_{kind}", query=f"?name={name}")
    page.leave_by("#rj-lists a[href*='state=failed']")
    assert len(page.browser.find_elements("css selector", "#result_list tbody tr")) == 7


@pytest.mark.parametrize("kind", ["task", "queue"])
def test_it_fits_looks_again_and_keeps_what_was_unfolded(page: Admin, kind: str) -> None:
    """Also in dark and in German; what a reader has unfolded, and the keyboard's place, outlast each look."""
    history(EVIL, EVIL)
    page.open("app_list", "reliable_jobs")
    page.leave_by(f"#rj-{kind}s th a")
    within = "return document.documentElement.scrollWidth <= window.innerWidth"
    for width in (1280, driving.TELEPHONE):
        page.browser.set_window_size(width, 1000)
        page.wait_until(lambda: bool(page.browser.execute_script(within)))
    page.browser.set_window_size(*driving.WINDOW)
    assert page.browser.title != "taken over"
    assert "onerror" in page.find("#content h1").text
    page.browser.execute_script("document.querySelector('#rj-charts details').open = true")
    page.browser.execute_script("document.querySelector('#rj-lists a').focus()")
    before = page.find("#rj-history-page")
    page.wait_until(lambda: page.find("#rj-history-page") != before)
    assert page.find("#rj-charts details").get_attribute("open")
    assert page.browser.execute_script("return document.activeElement.closest('#rj-lists') !== null")
    chart = "document.querySelector('.rj-chart canvas')"
    light = page.browser.execute_script(f"return {chart}.toDataURL()")
    page.browser.execute_script("document.documentElement.dataset.theme = 'dark'")
    page.wait_until(lambda: page.browser.execute_script(f"return {chart}.toDataURL()") != light)
    with override_settings(LANGUAGE_CODE="de"):
        page.browser.refresh()
        page.wait_until(lambda: bool(charts(page)))
        labels: list[Any] = [one.text for one in page.browser.find_elements("css selector", ".rj-chart .u-label")]
        assert labels[9:13] == ["Ab", "Fehlgeschlagen", "Fehlgeschlagen, wiederholt", "Abgestürzt"]
