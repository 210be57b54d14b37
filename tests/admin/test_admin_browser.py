"""The admin as a person uses it, in a real headless Chromium: its own JavaScript selects, asks and shows.

Set SCREENSHOTS to a directory to keep pictures of the pages.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.test import override_settings
from django.urls import reverse

from reliable_jobs.models import Job, JobEvent, JobGroup
from reliable_jobs.status import EventKind, Reason, Status
from tests.admin.test_admin import make
from tools import chromium

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

PASSWORD = "for the tests only"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    from selenium import webdriver

    programs = chromium.found()
    if programs is None:
        if os.environ.get("CI") == "true":
            pytest.fail(chromium.HELP)
        pytest.skip(chromium.HELP)
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    # A container's root has no sandbox and little shared memory; the pages are our own, on loopback.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


class Admin:
    """The browser, logged in."""

    def __init__(self, browser: Chrome, base: str) -> None:
        self.browser = browser
        self.base = base

    def open(self, name: str, *args: Any, query: str = "") -> None:
        self.browser.get(self.base + reverse(f"admin:{name}", args=args) + query)

    def find(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def click(self, css: str) -> None:
        self.find(css).click()

    def leave_by(self, css: str) -> None:
        """Click, and wait until another page has come."""
        from selenium.webdriver.support.ui import WebDriverWait

        before = self.find("html")
        self.click(css)
        WebDriverWait(self.browser, 30).until(lambda driver: driver.find_element("css selector", "html") != before)
        WebDriverWait(self.browser, 30).until(
            lambda driver: driver.execute_script("return document.readyState") == "complete"
        )

    @property
    def text(self) -> str:
        return str(self.find("body").text)

    @property
    def messages(self) -> str:
        return " | ".join(str(item.text) for item in self.browser.find_elements("css selector", ".messagelist li"))

    def picture(self, name: str) -> None:
        if os.environ.get("SCREENSHOTS"):
            self.browser.save_screenshot(str(Path(os.environ["SCREENSHOTS"]) / f"{name}.png"))

    def choose_action(self, name: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.find("select[name=action]")).select_by_value(name)


@pytest.fixture
def page(browser: Chrome, live_server: Any) -> Iterator[Admin]:
    User.objects.create_superuser("Grace", password=PASSWORD)
    admin = Admin(browser, live_server.url)
    browser.delete_all_cookies()
    admin.open("login")
    admin.find("#id_username").send_keys("Grace")
    admin.find("#id_password").send_keys(PASSWORD)
    admin.leave_by("input[type=submit]")
    browser.get_log("browser")
    yield admin
    complaints = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [complaint for complaint in complaints if "favicon" not in complaint]


def test_a_person_finds_a_failed_job_and_requeues_it_to_another_queue(page: Admin) -> None:
    job = make(
        status=Status.FAILED,
        reason=Reason.ERROR,
        failures=3,
        error="ValueError: no such order",
        traceback='Traceback:\n  File "shop/tasks.py", line 17, in ship\nValueError: no such order',
        worker="celery@host pid 7",
        key="order-17",
    )
    JobEvent.objects.create(
        job=job, kind=EventKind.FAILURE, actor="celery@host pid 7", detail="ValueError: no such order"
    )
    make(status=Status.SUCCEEDED)
    make()
    make(status=Status.RUNNING, worker="celery@host pid 9")
    make(status=Status.CANCELLED, error="cancelled by Ada")
    page.open("reliable_jobs_job_changelist")
    page.picture("list")
    page.find("#changelist-filter a[href='?show=failed']").click()
    page.leave_by("#result_list th a")
    assert "Failed after 3 attempts: ValueError: no such order." in page.find(".rj-story").text
    assert "line 17" in page.text
    page.picture("job")
    page.leave_by("#rj-requeue")
    page.find("#id_queue").send_keys("slow")
    page.picture("requeue")
    page.leave_by("input[type=submit].default")
    assert "1 job requeued to queue slow." in page.messages
    assert page.find(".rj-story").text.startswith("Requeued by Grace: due now.")
    page.picture("requeued")
    row = Job.objects.get(pk=job.pk)
    assert (row.status, row.queue, row.requeues) == ("waiting", "slow", 1)


def test_select_all_across_pages_cancels_what_the_page_said_it_would(page: Admin) -> None:
    for _ in range(120):
        make()
    done = make(status=Status.SUCCEEDED)
    page.open("reliable_jobs_job_changelist", query="?show=waiting")
    page.click("#action-toggle")
    assert "Select all 120 jobs" in page.text
    page.click(".actions .question a")
    page.choose_action("cancel")
    page.leave_by(".actions button[type=submit]")
    assert "120 jobs: 120 waiting" in page.text
    page.picture("cancel")
    assert Job.objects.filter(status=Status.WAITING).count() == 120
    page.leave_by("input[type=submit].default")
    assert "120 jobs cancelled." in page.messages
    assert "show=waiting" in page.browser.current_url
    assert Job.objects.filter(status=Status.CANCELLED).count() == 120
    assert Job.objects.get(pk=done.pk).status == "succeeded"


def test_markup_in_errors_and_arguments_does_not_run(page: Admin) -> None:
    evil = "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>"
    job = make(status=Status.FAILED, task=evil, error=evil, traceback=evil, worker=evil, key=evil, result=f'"{evil}"')
    JobEvent.objects.create(job=job, kind=EventKind.FAILURE, actor=evil, detail=evil, traceback=evil)
    for name, args in (
        ("changelist", ()),
        ("change", (job.pk,)),
        ("requeue", (job.pk,)),
        ("history", (job.pk,)),
    ):
        page.open(f"reliable_jobs_job_{name}", *args)
        assert page.browser.title != "taken over", name
        assert re.search("onerror", page.text), name


def test_the_search_box_finds_a_job_by_its_key(page: Admin) -> None:
    with override_settings(USE_THOUSAND_SEPARATOR=True):
        job = make(key="order-17")
        make()
        page.open("reliable_jobs_job_changelist")
        page.find("#searchbar").send_keys("order-17")
        page.leave_by("#changelist-search input[type=submit]")
        assert str(job.pk)[:8] in page.text
        assert "1 job" in page.text


def test_a_chord_is_seen_whole_and_its_parts_are_a_click_away(page: Admin) -> None:
    body = make(id=(body_id := uuid.uuid4()), status=Status.FAILED, error="Dependency raised ValueError: no such lens")
    told = {"task": body.task, "args": [], "kwargs": {}, "options": {"task_id": str(body_id)}}
    group = JobGroup.objects.create(
        id=uuid.uuid4(), body=json.dumps(told), body_id=body_id, size=40, state="failed", error="a part failed"
    )
    for number in range(40):
        failed = number == 37
        make(
            owes=group.pk,
            place=f"{number:06x}",
            status=Status.FAILED if failed else Status.SUCCEEDED,
            error="ValueError: no such lens" if failed else "",
        )
    for width in (1400, 390):
        page.browser.set_window_size(width, 1000)
        page.open("reliable_jobs_job_change", body.pk)
        tree = page.find("#rj-workflow")
        assert "chord of 40 failed 39 succeeded, 1 failed; a part failed" in tree.text
        assert "(this job) failed" in tree.text
        assert "ValueError: no such lens" in tree.text
        assert tree.size["width"] <= width
        page.browser.execute_script("arguments[0].scrollIntoView()", tree)
        page.picture(f"workflow-{width}")
    page.browser.set_window_size(1400, 1000)
    page.leave_by("#rj-workflow a[href*='q=group']")
    assert "40 jobs" in page.text
    page.open("reliable_jobs_job_change", body.pk)
    page.leave_by("#rj-workflow li li a")
    assert "ValueError: no such lens" in page.find(".rj-story").text
