"""The admin as a person uses it, in a real headless Chromium: its own JavaScript selects, asks and shows."""

from __future__ import annotations

import datetime
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
from django.utils import timezone

from reliable_jobs.models import BulkAct, Job, JobEvent, JobGroup, ProcessSeen, Stat
from reliable_jobs.status import EventKind, Reason, Status
from reliable_jobs.sweep import acts
from tests.admin import driving
from tests.admin.driving import Admin
from tests.admin.pages import make
from tests.presence.test_presence import made

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.django_db(transaction=True)]

PASSWORD = "for the tests only"

browser = driving.browser


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
    admin.leave()


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
    page.choose("state", "failed")
    page.leave_by(".rj-filters input[type=submit]")
    page.leave_by("#result_list th a")
    assert "Failed after 3 attempts: ValueError: no such order." in page.find(".rj-story").text
    assert "line 17" in page.text
    page.leave_by("#rj-requeue")
    page.find("#id_queue").send_keys("slow")
    page.leave_by("input[type=submit].default")
    assert "1 job requeued to queue slow." in page.messages
    assert page.find(".rj-story").text.startswith("Requeued by Grace. Due now.")
    row = Job.objects.get(pk=job.pk)
    assert (row.status, row.queue, row.requeues) == ("waiting", "slow", 1)


def test_select_all_across_pages_cancels_what_the_page_said_it_would(page: Admin) -> None:
    for _ in range(120):
        make()
    done = make(status=Status.SUCCEEDED)
    page.open("reliable_jobs_job_changelist", query="?state=waiting")
    page.click("#action-toggle")
    assert "Select all 120 jobs" in page.text
    page.click(".actions .question a")
    page.choose("action", "cancel")
    page.leave_by(".actions button[type=submit]")
    assert "Cancel all (state: waiting)." in page.text
    assert "120 jobs" in page.text
    assert Job.objects.filter(status=Status.WAITING).count() == 120
    page.leave_by("input[type=submit].default")
    assert "Cancel all (state: waiting). Done at" in page.text
    assert Job.objects.filter(status=Status.CANCELLED).count() == 120
    assert Job.objects.get(pk=done.pk).status == "succeeded"


def test_all_failures_of_a_task_since_two_are_run_again_in_three_clicks(page: Admin) -> None:
    """S4: "run all failures of Z since 02:00 again", and watch it."""
    two = timezone.localtime() - datetime.timedelta(hours=2)
    for _ in range(30):
        make(status=Status.FAILED, task="mail.send", error_class="smtplib.SMTPServerDisconnected")
    before = make(status=Status.FAILED, task="mail.send", finished_at=two - datetime.timedelta(hours=1))
    other = make(status=Status.FAILED, task="shop.ship")
    page.open("reliable_jobs_job_changelist")
    page.choose("state", "failed")
    page.find("input[name=task]").send_keys("mail.send")
    page.find("input[name=since]").send_keys(f"{two:%Y-%m-%d %H:%M}")
    page.leave_by(".rj-filters input[type=submit]")
    page.leave_by("#rj-all-requeue")
    assert "Requeue all (state: failed, task: mail.send, ended since" in page.text
    assert "smtplib.SMTPServerDisconnected 30" in page.text
    page.find("#id_rate").send_keys("2")
    page.leave_by("input[type=submit].default")
    act = BulkAct.objects.get()
    assert (act.state, act.expected) == ("running", 30)
    BulkAct.objects.update(rate=None)
    while acts.sweep("default"):
        pass
    page.wait_for("Done at")  # the page looks by itself
    assert Job.objects.filter(task="mail.send", requeues=1).count() == 30
    assert not Job.objects.filter(pk__in=[before.pk, other.pk], requeues__gt=0).exists()
    page.leave_by("#rj-undo-button")
    assert "Done at" in page.text
    assert Job.objects.filter(status=Status.CANCELLED).count() == 30


def test_a_job_is_run_again_with_other_arguments(page: Admin) -> None:
    """S4: the arguments are checked against the task function, and the old job stays."""
    job = make(status=Status.FAILED, payload=b"[[3, 4], {}, {}]")
    page.open("reliable_jobs_job_change", job.pk)
    page.leave_by("#rj-rerun")
    assert page.find("#id_args").get_attribute("value") == "[3, 4]"
    page.find("#id_args").clear()
    page.find("#id_args").send_keys("[3, 4, 5, 6, 7]")
    page.leave_by("input[type=submit].default")
    assert "They don't fit tests.testapp.tasks.add" in page.text
    page.find("#id_args").clear()
    page.find("#id_args").send_keys("[30, 40]")
    page.leave_by("input[type=submit].default")
    assert "Enqueued as a new job" in page.messages
    new = Job.objects.exclude(pk=job.pk).get()
    assert bytes(new.payload).startswith(b"[[30, 40], {}")
    assert Job.objects.get(pk=job.pk).status == Status.FAILED
    assert f"of job {job.pk}, with other arguments" in page.text


def test_the_list_fits_a_telephone_and_its_filters_come_first(page: Admin) -> None:
    make(
        status=Status.FAILED,
        task="a.very.long.module.path.of.an.application.tasks.that_does_something",
        error="e" * 300,
    )
    page.browser.set_window_size(390, 900)
    try:
        page.open("reliable_jobs_job_changelist", query="?state=failed")
        width = page.browser.execute_script("return document.documentElement.scrollWidth")
        shown = page.browser.execute_script("return window.innerWidth")
        assert width <= shown
        order = page.browser.execute_script(
            "const all = [...document.querySelectorAll('#changelist input, #changelist select, #changelist a')];"
            "return [all.findIndex(e => e.name == 'state'), all.findIndex(e => e.matches('#result_list a'))]"
        )
        assert 0 <= order[0] < order[1]
    finally:
        page.browser.set_window_size(1400, 1000)


def test_no_word_of_the_list_is_cut_on_a_telephone_in_german(page: Admin) -> None:
    """ "fehlgeschlagen" is long; a table that is too wide hides its end."""
    for status in Status:
        make(status=status, reason=Reason.ERROR, failures=2, error="ValueError: no such order", task="shop.tasks.ship")
    make(
        status=Status.FAILED, task="a.very.long.module.path.of.an.application.tasks.that_does_something", queue="q" * 90
    )
    page.browser.set_window_size(driving.TELEPHONE, 900)
    try:
        with override_settings(LANGUAGE_CODE="de"):
            page.open("reliable_jobs_job_changelist")
            assert "fehlgeschlagen" in page.find("#result_list").text
            assert re.search(r"letters · \d+ s · 2 verbraucht", page.find("#result_list").text)
            cut = page.browser.execute_script(
                "const edge = document.querySelector('.results').getBoundingClientRect().right;"
                "const wide = one => one.getBoundingClientRect().right > edge || one.scrollWidth > one.clientWidth;"
                "const cells = [...document.querySelectorAll('#result_list td, #result_list th')];"
                "return cells.filter(one => one.offsetParent && wide(one)).map(one => one.outerHTML);"
            )
            if os.environ.get("SCREENSHOTS"):
                page.browser.execute_script("document.querySelector('.results').scrollIntoView()")
                page.browser.save_screenshot(str(Path(os.environ["SCREENSHOTS"]) / "list-de-390.png"))
        assert cut == []
    finally:
        page.browser.set_window_size(1400, 1000)


def texts(page: Admin, css: str) -> list[str]:
    """Read at once: a page that looks again by itself replaces its elements meanwhile."""
    script = "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText)"
    return list(page.browser.execute_script(script, css))


def test_the_overview_draws_its_charts_and_looks_again_by_itself(page: Admin) -> None:
    """S5: what fails, how deep the queues are; refreshed while the page is shown; dark, on a telephone, in German."""
    from selenium.webdriver import ActionChains

    now = timezone.now().replace(second=0, microsecond=0)
    for minute in range(50):
        of = {"span": 60, "at": now - datetime.timedelta(minutes=minute), "task": "mail.send", "queue": "letters"}
        Stat.objects.create(**of, ending="succeeded", n=40 + minute % 7, r5=30, r8=10, w3=40)
        Stat.objects.create(**of, ending="failed", n=minute % 4)
    for _ in range(7):
        make(status=Status.FAILED, task="mail.send", error_class="smtplib.SMTPServerDisconnected", release="2026.11.2")
    make(queue="mail", due_at=timezone.now() - datetime.timedelta(minutes=9))
    page.open("app_list", "reliable_jobs")
    assert "No worker, beat or relay is alive." in page.text
    page.wait_until(lambda: len(page.browser.find_elements("css selector", ".rj-chart canvas")) == 4)
    make(queue="quite-new")
    page.wait_for("quite-new")
    page.wait_until(lambda: len(page.browser.find_elements("css selector", ".rj-chart canvas")) == 4)
    # The theme's button is pressed, and the telephone turned, on the page as it is.
    chart = "document.querySelector('.rj-chart canvas')"
    before = page.browser.execute_script(f"return {chart}.toDataURL()")
    page.browser.execute_script("document.documentElement.dataset.theme = 'dark'")
    page.wait_until(lambda: page.browser.execute_script(f"return {chart}.toDataURL()") != before)
    page.browser.set_window_size(390, 900)
    try:
        page.wait_until(lambda: page.browser.execute_script(f"return {chart}.clientWidth <= window.innerWidth"))
        width = page.browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= page.browser.execute_script("return window.innerWidth")
    finally:
        page.browser.set_window_size(1400, 1000)
    page.browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "America/New_York"})
    with override_settings(LANGUAGE_CODE="de"):
        page.open("app_list", "reliable_jobs")
        labels = texts(page, ".rj-chart .u-label")
        assert labels[:6] == ["Ab", "Erfolgreich", "Fehlgeschlagen", "Ab", "Laufzeit p50, ms", "Laufzeit p95, ms"]
        # The time below the pointer is the one of the table's row, not that of the browser's own zone.
        page.browser.execute_script("document.querySelector('#rj-charts details').open = true")
        times = set(texts(page, "#rj-numbers tbody th"))
        ActionChains(page.browser).move_to_element(page.find(".rj-chart .u-over")).perform()
        page.wait_until(lambda: page.find(".rj-chart .u-value").text in times)
    page.browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": ""})
    page.open("app_list", "reliable_jobs")
    page.leave_by("#rj-failing th a")
    assert len(page.browser.find_elements("css selector", "#result_list tbody tr")) == 7


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
        assert "chord of 40 failed 39 × succeeded, 1 × failed; a part failed" in tree.text
        assert "(this job) failed" in tree.text
        assert "ValueError: no such lens" in tree.text
        assert tree.size["width"] <= width
        page.browser.execute_script("arguments[0].scrollIntoView()", tree)
    page.browser.set_window_size(1400, 1000)
    page.leave_by("#rj-workflow a[href*='q=group']")
    assert "40 jobs" in page.text
    page.open("reliable_jobs_job_change", body.pk)
    page.leave_by("#rj-workflow li li a")
    assert "ValueError: no such lens" in page.find(".rj-story").text


def test_who_works_and_who_is_gone_is_two_clicks_from_the_overview(page: Admin) -> None:
    job = make(status=Status.RUNNING)
    running = made("celery@web-1", 4, queues=["letters", "mail"])
    ProcessSeen.objects.filter(pk=running).update(active=[[str(job.pk), 7.0]], broker_ok=True)
    made("celery@web-2", 50)
    made("celery@web-3", 600)
    made("beat@web-1", 1, kind="beat", queues=())
    page.browser.get(page.base + reverse("admin:app_list", args=["reliable_jobs"]))
    page.leave_by("a[href$='/reliable_jobs/process/']")
    for width in (1280, 390):
        page.browser.set_window_size(width, 1000)
        assert page.find("#rj-workers").is_displayed()
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
    page.browser.set_window_size(1400, 1000)
    for text in ("There.", "Silent for ", "Gone: not seen for 10 min", "letters, mail"):
        assert text in page.text
    page.leave_by("#rj-workers td a")
    assert str(job.pk) in page.text
