"""Three in the morning (S4, S5): fourteen questions, each answered from the app's first page in three clicks at most.

In words, with what to do, by whoever has the permission that it takes and no other. At the end stands a table of the
clicks.

``make soak`` asks them of a million jobs, and of people with all permissions too.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from django.utils import timezone
from pytest_django.live_server_helper import LiveServer

from reliable_jobs.models import BulkAct, Job, Pause
from reliable_jobs.status import Status
from tests.admin import driving, night
from tests.admin.driving import Admin
from tests.admin.mass import a_million

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.browser, pytest.mark.slow]

browser = driving.browser

MOST = 3
SIZES = [
    pytest.param("small", id="small"),
    pytest.param("million", id="a million", marks=[pytest.mark.soak, pytest.mark.servers, pytest.mark.timeout(1800)]),
]


@contextlib.contextmanager
def in_a_file(path: Path) -> Iterator[None]:
    """Django's default database is a new one of SQLite, in every thread."""
    whole = connections.configure_settings({"default": {**settings.DATABASES["default"], "NAME": str(path)}})
    before = connections["default"], copy.copy(connections.settings["default"])
    connections.settings["default"] = whole["default"]
    del connections["default"]
    try:
        call_command("migrate", verbosity=0)
        yield
    finally:
        connections["default"].close()
        connections.settings["default"] = before[1]
        connections["default"] = before[0]


@pytest.fixture(scope="module", params=SIZES)
def size(
    request: pytest.FixtureRequest, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database of its own, whose rows stay from test to test: they are many."""
    if connection.vendor == "sqlite" and request.param == "small":
        with django_db_blocker.unblock(), in_a_file(tmp_path_factory.mktemp("night") / "site.sqlite3"):
            yield request.param
        return
    from tests.support.harness import Stack

    servers = request.getfixturevalue("_stack_of_session")
    stack = Stack(servers.server_url, servers.broker_url)
    with stack.migrated(django_db_blocker), django_db_blocker.unblock(), stack.active():
        yield request.param


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, size: str, browser: Chrome) -> Iterator[Site]:
    people = night.build(a_million if size == "million" else None)
    server = LiveServer("localhost")
    site = Site(Admin(browser, server.url), people)
    with server._live_server_modified_settings:
        yield site
        site.page.leave()
    server.stop()
    writer = request.config.get_terminal_writer()
    writer.line()
    for question, who, clicks in site.asked:
        writer.line(f"{clicks} click{' ' if clicks == 1 else 's'}  {question}  ({who}, {size})")


class Site:
    def __init__(self, page: Admin, people: dict[str, Any]) -> None:
        self.page, self.people = page, people
        self.asked: list[tuple[str, str, int]] = []
        self.logged_in = ""

    def land(self, who: str) -> Admin:
        """The app's first page."""
        if self.logged_in != who:
            self.page.log_in(self.people[who])
            self.logged_in = who
        night.alive()
        self.page.open("app_list", "reliable_jobs")
        return self.page

    @contextlib.contextmanager
    def question(self, question: str, who: str = "view") -> Iterator[Admin]:
        """Asked from the first page on."""
        page = self.land(who)
        page.clicks = 0
        yield page
        assert page.clicks <= MOST, f"{question} took {page.clicks} clicks"
        assert page.fits_a_telephone(), page.browser.current_url
        self.asked.append((question, who, page.clicks))


def askers(permission: str) -> Any:
    """Whoever may look and has this permission alone; in ``make soak`` those with all of them too."""
    many = [pytest.param(who, marks=pytest.mark.soak) for who in night.MANY]
    return pytest.mark.parametrize("who", [permission, *many])


def row(page: Admin, section: str, text: str) -> str:
    """The row of a table of the overview that begins with this."""
    rows = page.browser.find_elements("css selector", f"#{section} tbody tr")
    return next(one.text for one in rows if one.text.startswith(text))


def find(page: Admin, term: str) -> None:
    page.type("#rj-find input[name=q]", term)
    page.leave_by("#rj-find input[type=submit]")


def test_1_what_fails_now_and_since_when(site: Site) -> None:
    with site.question("What fails now, and since when") as page:
        first = timezone.localtime(Job.objects.filter(task="shop.ship").earliest("finished_at").finished_at)
        wrong = page.find("#rj-wrong").text
        assert "Task 'shop.ship' fails with ConnectionError: 92 jobs since " in wrong
        assert f"since {first:%Y-%m-%d %H:%M:%S}, 80 of them in the last hour" in wrong
        assert "Fix the cause, then run them again" in wrong
        cells = row(page, "rj-failing", "shop.ship")
        for text in ("ConnectionError", night.BROKEN, "92 80 rising", f"{first:%Y-%m-%d %H:%M:%S}"):
            assert text in cells
        page.picture("overview")


def test_2_which_task_is_slow(site: Site) -> None:
    with site.question("Which task is slow") as page:
        said = page.find("#rj-tasks").text
        assert "Slowest: task 'shop.report'. Of 20 runs 19 end within about " in said
        assert "the longest took 14.7 s" in said
        assert "on the page Workers" in said


def test_3_how_deep_is_each_queue_and_how_old_its_oldest_due_job(site: Site) -> None:
    with site.question("How deep is each queue, how old its oldest due job") as page:
        cells = row(page, "rj-queues", "mail")
        assert cells.startswith("mail 8 2"), cells
        assert " min 0 0 " in cells
        assert "8 jobs wait" in page.find("#rj-wrong").text


def test_4_why_has_a_job_not_run(site: Site) -> None:
    with site.question("Why has job X not run") as page:
        find(page, "order-17")
        said = page.find(".rj-story").text
        assert "to queue 'mail'" in said
        assert "No worker consumes it; the last one, celery@web-3, was seen " in said
        assert "Start one with -Q mail" in said
        assert "rj-story-bad" in page.find(".rj-story").get_attribute("class")
        page.picture("why-not")


def test_5_why_did_a_job_run_twice(site: Site) -> None:
    with site.question("Why did job Y run twice") as page:
        find(page, "order-18")
        said = page.find("#rj-reruns").text
        assert said.startswith("Why it runs more than once: its process died at ")
        assert "requeued by ada at " in said
        assert "was rolled back" in said
        page.picture("twice")


@askers("requeue")
def test_6_run_all_failures_since_two_again(site: Site, who: str) -> None:
    task = night.FAILS[who]
    with site.question("Run all failures of Z since 02:00 again", who) as page:
        page.leave_by(f"#rj-failing th a[href*='task={task}&']")
        two = timezone.localtime() - datetime.timedelta(minutes=100)
        page.type("input[name=since]", f"{two:%H:%M}")
        page.picture("list")
        page.leave_by("#rj-all-requeue")
        assert f"{night.SINCE} jobs" in page.text
        assert f"(state: failed, task: {task}, " in page.text
        page.picture("act-asks")
        page.leave_by("input[type=submit].default")
        page.wait_for("Done at")
        page.picture("act-done")
    assert Job.objects.filter(task=task, requeues=1).count() == night.SINCE


@askers("cancel")
def test_7_cancel_everything_in_a_queue(site: Site, who: str) -> None:
    queue = night.IMPORTS[who]
    with site.question("Cancel everything in queue Q", who) as page:
        page.leave_by(f"#rj-queues td a[href*='state=waiting'][href*='queue={queue}']")
        page.leave_by("#rj-all-cancel")
        assert "30 jobs" in page.text
        assert f"Cancel all (state: waiting, queue: {queue})." in page.text
        page.leave_by("input[type=submit].default")
        page.wait_for("Done at")
    assert Job.objects.filter(queue=queue, status=Status.CANCELLED).count() == 30
    assert BulkAct.objects.latest("cutoff").actor == who


@askers("rerun")
def test_8_change_the_arguments_and_run_again(site: Site, who: str) -> None:
    key = f"order-19-{who}"
    with site.question("Change the arguments and run again", who) as page:
        find(page, key)
        page.leave_by("#rj-rerun")
        page.type("#id_args", "[3, 4]")
        page.picture("other-arguments")
        page.leave_by("input[type=submit].default")
        assert "Enqueued as a new job" in page.messages
    assert Job.objects.get(key=key).status == Status.FAILED
    assert bytes(Job.objects.latest("created_at").payload).startswith(b"[[3, 4], {}")


@askers("stop")
def test_9_stop_a_running_job(site: Site, who: str) -> None:
    job = Job.objects.get(key=f"report-{who}")
    with site.question("Stop a running job", who) as page:
        page.leave_by("#rj-alive a")
        page.picture("workers")
        page.leave_by(f"#rj-workers a[href*='{job.pk}/stop/']")
        assert "what an atomic task has written is rolled back" in page.text
        page.leave_by("input[type=submit].default")
        assert "asked to stop it" in page.messages
        assert who in page.find("#rj-history").text


@askers("pause")
def test_10_pause_a_queue(site: Site, who: str) -> None:
    queue = night.LETTERS[who]
    with site.question("Pause a queue", who) as page:
        page.leave_by(f"#rj-queues a[href*='pause/add/'][href*='name={queue}']")
        page.type("#id_why", "the printer is on fire")
        page.picture("pause")
        page.leave_by("input[name=_save]")
    assert Pause.objects.get().name == queue
    said = site.land("view").find("#rj-wrong").text
    assert f"Queue '{queue}' is paused by {who} since " in said
    assert "the printer is on fire" in said
    Pause.objects.all().delete()


def test_11_are_beat_sweeper_workers_and_relay_alive(site: Site) -> None:
    with site.question("Are beat, sweeper, workers and relay alive") as page:
        said = page.find("#rj-alive").text
        assert said.startswith("Alive: 2 workers, 1 beat, no relay. Beat sweeps.")
        page.leave_by("#rj-alive a")
        assert "Gone: not seen for " in page.find("#rj-workers").text


def test_12_which_release_broke_it(site: Site) -> None:
    with site.question("Which release broke it") as page:
        assert f"It fails only in release '{night.BROKEN}'." in page.find("#rj-wrong").text
        assert night.BROKEN in row(page, "rj-failing", "shop.ship")


def test_13_who_requeued_a_job(site: Site) -> None:
    with site.question("Who requeued this") as page:
        find(page, "order-18")
        assert "requeued by ada at " in page.find("#rj-reruns").text


def test_14_what_did_a_job_do_step_by_step(site: Site) -> None:
    with site.question("What did it do, step by step") as page:
        find(page, "order-18")
        steps = [one.text for one in page.browser.find_elements("css selector", "#rj-history tbody tr")]
        what = ("succeeded", "began", "requeue", "failure", "crash", "enqueued")
        assert [word for step, word in zip(steps, what, strict=True) if word not in step] == []


BUTTONS = {
    "requeue": {"rj-requeue"},
    "cancel": {"rj-cancel"},
    "rerun": {"rj-rerun"},
    "stop": {"rj-stop"},
    "pause": {"pause/add/"},
}


@pytest.mark.parametrize("who", [name for name in night.USERS if name not in ("nobody", "actor")])
def test_each_person_is_offered_what_they_may_do_and_no_more(site: Site, who: str) -> None:
    page = site.land(who)
    html = page.browser.page_source
    for key in ("order-19-all", "order-17", "report-all"):
        page.open("reliable_jobs_job_find", query=f"?q={key}")
        html += page.browser.page_source
    offered = {verb for verb, marks in BUTTONS.items() if any(mark in html for mark in marks)}
    assert offered == (set(BUTTONS) if who in night.MANY else {who} & set(BUTTONS))


@pytest.mark.parametrize("who", ["nobody", "actor"])
def test_who_may_not_look_sees_nothing(site: Site, who: str) -> None:
    page = site.land(who)
    assert "shop." not in page.text
    assert "Find a job" not in page.text
    for name in ("job_changelist", "process_changelist", "pause_changelist", "bulkact_changelist", "job_find"):
        page.open(f"reliable_jobs_{name}")
        assert "403 Forbidden" in page.text
    page.browser.get_log("browser")  # the browser complains of each 403
