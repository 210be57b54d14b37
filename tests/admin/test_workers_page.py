"""The page Workers, and the sentences about a job that need it."""

from __future__ import annotations

import datetime
import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from reliable_jobs import presence
from reliable_jobs.admin import story, wording
from reliable_jobs.dispatch.answers import Depth
from reliable_jobs.models import ProcessSeen
from tests.admin import pages
from tests.admin.pages import make, staff
from tests.presence.test_presence import made

pytestmark = pytest.mark.django_db
boss = pages.boss

PAGE = "admin:reliable_jobs_process_changelist"


def page(client: Client) -> str:
    return re.sub(r"\s+", " ", client.get(reverse(PAGE)).content.decode())


def test_each_process_is_shown_with_its_state_and_what_to_do(boss: Client) -> None:
    for name, ago, ended in (("here", 1, False), ("quiet", 40, False), ("lost", 500, False), ("over", 1, True)):
        made(f"{name}@web", ago, ended=ended, queues=["mail", "letters"])
    ProcessSeen.objects.update(broker_ok=True)
    text = page(boss)
    for wanted in ("There.", "Silent for 40 s", "Look at its host", "Gone: not seen for 8 min", "start another one"):
        assert wanted in text, wanted
    assert "Ended 20" in text
    assert "letters, mail" in text or "mail, letters" in text
    ProcessSeen.objects.update(broker_ok=False)
    assert "it takes no messages" in page(boss)


def test_what_runs_is_linked(boss: Client) -> None:
    job = make(task="shop.ship")
    row = made("w@web", 2)
    ProcessSeen.objects.filter(pk=row).update(active=[[str(job.pk), 7.2], ["a plain task's", 1.0]])
    text = page(boss)
    assert f'<a href="{reverse("admin:reliable_jobs_job_change", args=[job.pk])}">shop.ship</a>, 9 s' in text
    stop = f'<a href="{reverse("admin:reliable_jobs_job_stop", args=[job.pk])}">'
    assert stop in text
    assert stop not in page(staff("view_job"))
    assert "a plain task&#x27;s (no job), 3 s" in text


def test_nobody_was_seen(boss: Client) -> None:
    assert "No worker, beat or relay was seen within a day. Start a worker" in page(boss)


def test_the_page_makes_at_most_ten_queries_however_many_there_are(boss: Client) -> None:
    for number in range(30):
        row = made(f"w{number}@web", number)
        ProcessSeen.objects.filter(pk=row).update(active=[[str(make().pk), 1.0]])
    with CaptureQueriesContext(connection) as asked:
        page(boss)
    assert len(asked) <= 10


def test_it_wants_the_permission_to_view_jobs() -> None:
    assert staff("requeue_job").get(reverse(PAGE)).status_code == 403
    assert staff("view_job").get(reverse(PAGE)).status_code == 200
    assert Client().get(reverse(PAGE)).status_code == 302


def test_a_name_is_shown_and_not_run(boss: Client) -> None:
    made("<script>alert(1)</script>", queues=["<script>alert(1)</script>"])
    assert "<script>alert(1)" not in page(boss)


def test_a_jobs_sentence_names_who_consumed_its_queue_last() -> None:
    seen = {"older@a": 900, "web-3": 300}
    for name, ago in seen.items():
        made(name, ago)
    nobody = Depth(exists=True, consumers=0, ready=3)
    last = presence.consumers_of("mail", "default")
    assert last.last is not None
    at = wording.moment(last.last.seen_at)
    wanted = f"No worker consumes it; the last one, web-3, was seen {at}. Start one with -Q mail."
    assert story.consumed("mail", nobody, last) == story.consumed("mail", None, last) == wanted
    gone = Depth(exists=False, consumers=0, ready=0)
    assert story.consumed("mail", gone, last).endswith(f"published again. {wanted}")
    assert story.consumed("mail", gone).startswith("The broker has no queue of that name.")
    made("here", 2)
    now = presence.consumers_of("mail", "default")
    assert story.consumed("mail", None, now) == "The broker did not say who consumes it; here did when last seen."
    assert story.consumed("mail", nobody, now) == "No worker consumes it: start one with -Q mail."
    assert last.last.ago > datetime.timedelta(seconds=299)
