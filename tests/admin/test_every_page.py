"""Every address of the app in the admin, as the URL resolver has it: a new page is walked here without being named."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.urls import URLPattern, URLResolver
from django.utils import timezone

from reliable_jobs import lifecycle
from reliable_jobs.models import BulkAct, Job, JobEvent, Pause, Process, ProcessSeen, Selection
from reliable_jobs.status import EventKind, Reason, Status
from reliable_jobs.sweep import acts
from tests.admin import pages
from tests.admin.pages import make, staff
from tests.presence.test_presence import made
from tests.testapp.tasks import login

pytestmark = pytest.mark.django_db

boss = pages.boss

APP = "reliable_jobs"
#: Permissions that let somebody act.
ACTING = ("requeue_job", "cancel_job", "rerun_job", "stop_job", "pause_job")
#: What the ids of buttons and links that act begin with.
BUTTONS = "rj-requeue|rj-cancel|rj-stop|rj-undo|rj-rerun|rj-all-"
EVIL = "<script>alert('rj')</script>"
SECRET = "hunter2secret"


def patterns(entries: Any, before: str = "") -> Iterator[tuple[str, URLPattern]]:
    for entry in entries:
        path = before + str(entry.pattern).replace("^", "")
        if isinstance(entry, URLResolver):
            yield from patterns(entry.url_patterns, path)
        else:
            yield path, entry


def addresses() -> list[str]:
    """Of every page of the app, with holes for what is asked for. Sorted, for xdist."""
    found = [path for path, _ in patterns(admin.site.get_urls()) if path.startswith(f"{APP}/")]
    return [f"{APP}/", *sorted(found)]


@dataclasses.dataclass
class World:
    """A row of everything that has a page."""

    job: Job
    act: BulkAct
    pause: Pause
    process: Process

    def fill(self, path: str) -> list[str]:
        """The addresses that a pattern stands for."""
        row = {"job": self.job, "bulkact": self.act, "pause": self.pause, "process": self.process}[path.split("/")[1]]
        filled = path.replace("<path:object_id>", str(row.pk)).replace("<path:content_type_id>", "1")
        verbs = ("requeue", "cancel", "nonsense") if "<str:verb>" in filled else ("",)
        whole = [filled.replace("<str:verb>", verb) for verb in verbs]
        assert "<" not in whole[0], f"teach this test to fill {path}"
        return [f"/admin/{address}" + "?state=failed" * address.startswith(f"{APP}/job/acts/") for address in whole]

    @property
    def state(self) -> Any:
        """All that a person could change."""
        return (
            list(Job.objects.order_by("pk").values("pk", "status", "epoch", "requeues", "queue", "due_at")),
            list(JobEvent.objects.order_by("pk").values("pk")),
            list(BulkAct.objects.order_by("pk").values("pk", "state", "done")),
            list(Pause.objects.order_by("pk").values("pk", "name")),
            list(Process.objects.order_by("pk").values("pk", "name")),
        )


@pytest.fixture
def world(db: None) -> World:
    with override_settings(RELIABLE_JOBS={"DISPATCH": "relay"}):
        job = Job.objects.get(pk=login.delay("Ada", password=SECRET).id)
    ended = {"status": Status.FAILED, "reason": Reason.ERROR, "finished_at": timezone.now(), "result": f'"{SECRET}"'}
    Job.objects.filter(pk=job.pk).update(failures=1, error_class="ValueError", **ended)
    make(task=EVIL, queue=EVIL, error=EVIL, worker=EVIL, key=EVIL, release=EVIL, error_class=EVIL)
    evil = make(task=EVIL, queue=EVIL, status=Status.FAILED, error=EVIL, error_class=EVIL, release=EVIL, result=EVIL)
    for one in (job, evil):
        detail = EVIL if one is evil else ""
        JobEvent.objects.create(job=one, kind=EventKind.FAILURE, actor=EVIL, detail=detail, traceback=detail)
    process = Process.objects.get(pk=made(EVIL, queues=[EVIL]))
    ProcessSeen.objects.filter(pk=process.pk).update(active=[[str(evil.pk), 3.0], [EVIL, 1.0]])
    act = acts.begin(Selection(state="failed", task=EVIL), "default", verb="requeue", actor=EVIL)
    return World(job, act, lifecycle.pause("queue", EVIL, "default", actor=EVIL, why=EVIL), process)


def all_addresses(world: World) -> list[str]:
    return [
        address for path in addresses() for address in (world.fill(path) if path != f"{APP}/" else [f"/admin/{APP}/"])
    ]


def test_the_walk_meets_the_pages_that_there_are(world: World) -> None:
    found = " ".join(all_addresses(world))
    for name in (
        "job/task/",
        "job/queues/",
        "job/acts/requeue/",
        "/rerun/",
        "/stop/",
        "/undo/",
        "/cancel_workflow/",
        "pause/add/",
        "process/",
    ):
        assert name in found, name


def test_who_is_not_logged_in_is_sent_to_the_login(world: World) -> None:
    before = world.state
    for address in all_addresses(world):
        for ask in (Client().get, Client().post):
            answer = ask(address)
            assert answer.status_code == 302, address
            assert answer["Location"].startswith("/admin/login/"), address
    assert world.state == before


def test_staff_without_a_permission_see_nothing(world: World) -> None:
    before = world.state
    for client in (staff(), staff(*ACTING)):  # who may act, but not look, may do neither
        for address in all_addresses(world):
            for ask in (client.get, client.post):
                answer = ask(address, follow=True)
                assert answer.status_code in (403, 404), (address, answer.status_code)
                assert str(world.job.pk)[:8] not in answer.content.decode(), address
        assert "Background jobs" not in client.get("/admin/").content.decode()
    assert world.state == before


def test_who_may_only_look_changes_nothing(world: World) -> None:
    client = staff("view_job")
    before = world.state
    for address in all_addresses(world):
        assert client.get(address, follow=True).status_code in (200, 403, 404), address
        text = client.post(address, {"confirmed": "yes", "post": "yes", "args": "[]"}, follow=True).content.decode()
        assert not re.search(rf'<(?:a|button|input)[^>]*id="(?:{BUTTONS})', text), address
        assert not re.search("Run these again|Pause…|Resume…|addlink", text), address
    assert world.state == before


@pytest.mark.parametrize("permission", ACTING)
def test_each_permission_opens_its_own_pages_only(world: World, permission: str) -> None:
    """A page that acts answers 403 to whoever has all permissions but its own."""
    client = staff("view_job", *(other for other in ACTING if other != permission))
    own = {
        "requeue_job": ["/requeue/"],
        "cancel_job": ["/cancel/", "/cancel_workflow/", "/undo/"],
        "rerun_job": ["/rerun/"],
        "stop_job": [f"{world.job.pk}/stop/"],
        "pause_job": ["/pause/add/", f"/pause/{world.pause.pk}/delete/"],
    }[permission]
    before = world.state
    for part in own:
        found = [address for address in all_addresses(world) if part in address]
        assert found, part
        for address in found:
            if "/undo/" not in address:
                assert client.get(address).status_code == 403, address
            assert client.post(address, {"confirmed": "yes", "post": "yes"}).status_code == 403, address
    assert world.state == before


def test_a_get_changes_nothing(world: World, boss: Client) -> None:
    before = world.state
    for address in all_addresses(world):
        assert boss.get(address, follow=True).status_code in (200, 403, 404), address
    assert world.state == before


def test_a_forged_post_is_refused_by_every_page(world: World) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("Grace"))
    before = world.state
    for address in all_addresses(world):
        assert client.post(address, {"confirmed": "yes", "post": "yes"}).status_code == 403, address
    assert world.state == before


def test_no_page_shows_markup_as_markup_or_a_secret(world: World, boss: Client) -> None:
    shown = 0
    for address in all_addresses(world):
        named = address.endswith(("/pause/add/", "/job/task/", "/job/queue/"))
        filled_in = (f"?kind=queue&name={EVIL}",) if named else ()
        for query in ("", f"?q={EVIL}", "?state=failed", f"?state=failed&task={EVIL}", *filled_in):
            whole = address.partition("?")[0] + query
            text = boss.get(whole, follow=True).content.decode()
            assert EVIL not in text, whole
            assert SECRET not in text, whole
            shown += "&lt;script&gt;" in text
    assert shown > 10, "the names that could be markup are on the pages"
